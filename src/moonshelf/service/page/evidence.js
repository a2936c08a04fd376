// Why two products may be one, in words: what the service measured about a pair, said as sentences.

import { h, outside, percent } from "./dom.js";

const IDENTIFIERS = { gtin: "GTIN", brand: "brand", mpn: "part number", group_id: "variant group", "numbers in title": "numbers in the title" };
const NEAR = 12; // bits of the picture hash up to which two pictures look alike to a person; words only

/** List items of a pair; `name` gives the letter of a product. */
export function evidence(pair, name) {
  const items = [];
  const point = (mark, word, ...text) => items.push(h("li", { class: mark }, h("span", { class: "mark", "aria-hidden": "true" }, mark === "good" ? "✓" : mark === "bad" ? "✗" : "·"), h("span", null, word && h("b", null, word), " ", ...text)));
  for (const conflict of pair.conflicts) point("bad", "Conflict:", outside(conflict));
  const identifiers = (verdict) => Object.entries(pair.identifiers).filter(([, said]) => said === verdict).map(([key]) => IDENTIFIERS[key] || key);
  const same = identifiers("same");
  const different = identifiers("different");
  if (same.length) point("good", "The same", outside(same.join(", ")));
  if (different.length) point("bad", "Different", outside(different.join(", ")));
  if (pair.attributes_agree.length) point("good", "Agree in", outside(pair.attributes_agree.join(", ")));
  for (const [key, values] of Object.entries(pair.attributes_differ)) {
    point("bad", `Differ in ${key}:`, outside(values[0] ?? "–"), ` (${name(pair.a)}) and `, outside(values[1] ?? "–"), ` (${name(pair.b)})`);
  }
  point(pair.title_overlap >= 0.6 ? "good" : "plain", "", `Their titles share ${percent(pair.title_overlap)} of their words`);
  if (pair.picture_bits !== null) {
    const bits = pair.picture_bits;
    const words = bits === 0 ? "The pictures look the same" : bits <= NEAR ? "The pictures look much alike" : "The pictures look different";
    point(bits <= NEAR ? "good" : "plain", "", `${words} (${bits} of 63 bits differ)`);
  }
  point("plain", "", `The vectors' cosine is ${pair.score.toFixed(3)}`);
  return items;
}

/** What a person said of a pair before, or nothing. */
export function reviewed(pair) {
  if (!pair.review) return null;
  const { verdict, by, time, note } = pair.review;
  const word = verdict === "accept" ? "the same product" : verdict === "reject" ? "not the same" : verdict;
  const day = /^\d{4}-\d\d-\d\d/.exec(time)?.[0];
  return h("p", { class: "small reviewed" }, "Reviewed: ", h("b", null, outside(word || "a note")), by && [" by ", outside(by)], day && `, ${day}`, note && [": ", outside(note)]);
}
