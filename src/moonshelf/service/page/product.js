// One product: its picture, everything that the feed says and the model wrote, where the two disagree, and what is
// like it.

import { request, thumbnail } from "./api.js";
import { fill, h, outside, price, safeLink, say, table, unseen } from "./dom.js";
import { agree, card, feedback, likeLink, load, said, shares, skeletons, stop, toast } from "./parts.js";

export function product(main, place) {
  const box = h("div");
  const near = h("section", { class: "near", hidden: true }, h("h2", null, "More like this"));
  const row = h("div");
  near.append(row);
  main.append(h("h1", { class: "hidden" }, "Product"), box, near);
  load(box, {
    skeleton: skeletons(1, "page"),
    work: (signal) => request(`v1/products/${encodeURIComponent(place.id)}`, { signal }),
    show: (found) => {
      main.querySelector("h1").remove();
      fill(box, page(found));
      document.title = `${found.title || found.id} · Moonshelf`;
      near.hidden = false;
      alike(row, found);
    },
  });
  return { close: () => { stop(box); stop(row); } };
}

function page(found) {
  const fields = [
    ["Id", found.id], ["Brand", found.brand], ["Price", price(found.price, found.currency)], ["Category", found.category],
    ["Group", found.group_id], ["Availability", found.availability?.replaceAll("_", " ")],
  ].filter(([, value]) => value);
  const wrote = found.rationale.replace(/<\/?think>/g, "").trim();
  return h("article", { class: "product" },
    h("div", { class: "pane" }, thumbnail(found, { size: 384, lazy: false })),
    h("div", { class: "about" },
      h("h1", null, outside(found.title || "Without a title")),
      h("dl", { class: "facts" }, fields.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, outside(value)))),
        found.link && h("div", null, h("dt", null, "Link"), h("dd", null, safeLink(found.link)))),
      found.description && h("p", { class: "description" }, outside(found.description)),
      h("h2", null, "What it is"),
      attributes(found),
      h("h2", null, "What the model wrote"),
      found.rationale_valid === false && h("p", { class: "small warn" }, "It broke the format that was asked for, so its attributes may be incomplete."),
      wrote ? h("blockquote", { class: "wrote" }, outside(wrote)) : h("p", { class: "muted" }, "Nothing: it was embedded without reasoning."),
      found.weights && [h("h2", null, "What the vector rests on"), shares(found.weights)],
      h("p", { class: "row" }, h("a", { class: "button", href: likeLink(found.id) }, "Search for more like this"))));
}

/** Both lists of attributes as one table. */
function attributes(found) {
  const rows = said(found);
  if (!rows.length) return h("p", { class: "muted" }, "Neither the feed nor the model names an attribute.");
  const shown = (value) => (value === undefined ? h("span", { class: "muted" }, "–", unseen("nothing")) : outside(value));
  return h("div", { class: "scroll", role: "region", "aria-label": "Attributes", tabindex: 0 },
    table({ class: "attributes" }, ["Attribute", "Feed", "Model", unseen("Agreement")], rows.map(({ name, feed, model }) => {
      const both = feed !== undefined && model !== undefined;
      const differ = both && !agree(feed, model);
      const verdict = differ ? arbiter(found.id, name, feed, model) : both && h("span", { class: "mark good" }, h("span", { "aria-hidden": "true" }, "✓ "), "agree");
      return { class: differ ? "differs" : null, cells: [outside(name), shown(feed), shown(model), verdict] };
    })));
}

/** Feed and model say different things: who is right is for a person to say. */
export function arbiter(id, name, feed, model) {
  const box = h("span", { class: "arbiter" });
  const choose = (value, who) => h("button", { type: "button", class: "small-button", onclick: async () => {
    if (!(await feedback("attribute", { id, name }, value))) return;
    fill(box, h("span", { class: "mark good" }, h("span", { "aria-hidden": "true" }, "✓ "), `${who} is right`));
    toast(`Noted: ${name} is ${value}.`, { time: 3000 });
  } }, `${who} is right`, unseen(`: ${name} is ${value}`));
  return fill(box, h("span", { class: "mark bad" }, h("span", { "aria-hidden": "true" }, "✗ "), "they differ"), choose(feed, "Feed"), choose(model, "Model"));
}

/** Accepts, overrides or rejects a suggested value, with a note: feedback on an attribute. */
export function reviewer(one) {
  const label = (what) => `${what} for ${one.name} of ${one.product.title || one.product.id}`;
  const value = h("input", { type: "text", value: one.value, maxlength: 500, "aria-label": label("Value") });
  const note = h("input", { type: "text", maxlength: 4000, placeholder: "Note", "aria-label": label("Note") });
  const box = h("form", { class: "arbiter", onsubmit: (event) => { event.preventDefault(); send(value.value.trim()); } });
  const send = async (verdict) => {
    if (!verdict || !(await feedback("attribute", { id: one.product.id, name: one.name, suggested: one.value }, verdict, note.value.trim()))) return;
    fill(box, h("span", { class: "mark good" }, h("span", { "aria-hidden": "true" }, "✓ "), verdict === "none" ? "rejected" : `${one.name} is `, verdict !== "none" && outside(verdict)));
    toast(`Noted: ${one.name}.`, { time: 3000 });
  };
  return fill(box, value, note, h("button", { type: "submit", class: "small-button" }, "Keep this value"),
    h("button", { type: "button", class: "small-button", onclick: () => send("none") }, "It has none"));
}

function alike(row, found) {
  load(row, {
    skeleton: skeletons(4),
    work: (signal) => request("v1/search", { body: { like: found.id, limit: 6 }, signal }),
    show: (reply) => {
      fill(row, reply.hits.length ? h("ol", { class: "grid tight" }, reply.hits.map((hit) => card(hit.product, { hit, mode: reply.mode, compact: true }))) : h("p", { class: "muted" }, "Nothing is like it."));
      say(`${found.title || found.id}. ${reply.hits.length} products like it are listed below.`);
    },
  });
}
