// What the judge said of creatives: the images with the preferred one marked in words, the probability, reasons by
// question, intervals, and what a person makes of it: another choice, a note, an export.

import { fill, h, number, outside, percent, table } from "./dom.js";
import { download, failure, feedback, toast } from "./parts.js";

export const letterOf = (i) => (i < 26 ? String.fromCharCode(65 + i) : `#${i + 1}`);
const FORMS = [
  ["plan", "Test plan", "md", "text/markdown"], ["csv", "CSV", "csv", "text/csv"],
  ["bandit", "Bandit priors", "json", "application/json"],
];

/** A reply about two images. */
export function compared(reply, context) {
  const name = namer(context.images);
  const sure = Math.max(reply.p, 1 - reply.p);
  const heading = reply.winner
    ? `${name(reply.winner)} is preferred, with probability ${number(sure)}`
    : "No verdict";
  return [
    h("h2", { tabindex: -1 }, heading),
    !reply.winner && h("p", { class: "lead" }, "The judge abstains: ", outside(reply.abstained || "it gave no reason"), "."),
    h("div", { class: "duel" }, h("div", { class: "two" }, context.images.map((image) => figure(image, name, reply.winner === image.id ? "preferred" : ""))), h("div", { class: "says" }, odds(reply.p, name(context.images[0].id), name(context.images[1].id)),
    h("p", { class: "small" }, `Probability of ${name(context.images[0].id)} when it was shown first ${number(reply.p_first)}, when it was shown second ${number(reply.p_second)}; averaged and calibrated ${number(reply.p)}.`), flags(reply.flags), foot(reply))),
    h("h3", null, "Its reasons, question by question"),
    questions(reply.findings, name(context.images[0].id), name(context.images[1].id)),
    decision(reply, reply.winner, context, name),
    exports(reply, context),
  ];
}

/** A reply about more. */
export function ranked(reply, context) {
  const name = namer(context.images);
  const images = new Map(context.images.map((image) => [image.id, image]));
  const best = reply.order[0];
  const none = !reply.pairs.some((pair) => pair.verdict);
  const placed = (id, i) => (none ? "" : reply.unjudged.includes(id) ? "no place" : `${i + 1}.`);
  const heading = none ? "No verdict: the images are in no order" : reply.winner && reply.clear ? `${name(reply.winner)} is preferred` : reply.winner ? `${name(reply.winner)} leads, but not clearly` : "No image is the best";
  return [
    h("h2", { tabindex: -1 }, heading),
    h("p", { class: "lead" }, none ? "The judge abstained on every pair. Test them, or ask with more searches of shoppers." : reply.clear && best
      ? `The chance that it is the best for this judge is ${percent(best.p_best)}.`
      : "No creative is clearly the best. Test the first few, or ask with more searches of shoppers."),
    foot(reply),
    reply.identical.length > 0 && h("ul", { class: "notes" }, reply.identical.map((group) => h("li", null, `${list(group.map(name))} are one and the same image, and share a place.`))),
    !none && reply.unjudged.length > 0 && h("p", { class: "note" }, `No comparison with ${list(reply.unjudged.map(name))} has a verdict: the place says nothing.`),
    h(none ? "ul" : "ol", { class: "places" }, reply.order.map((one, i) => h("li", null, figure(images.get(one.id) || { id: one.id }, name, one.id === reply.winner ? "preferred" : "", placed(one.id, i))))),
    !none && [h("h3", null, "How sure the order is"), strengths(reply.order, name)],
    h("h3", null, "Pair by pair"),
    reply.pairs.map((pair) => {
      const [a, b] = [name(pair.a), name(pair.b)];
      const said = pair.verdict ? `${name(pair.verdict)} preferred, ${number(Math.max(pair.p, 1 - pair.p))}` : `no verdict: ${pair.abstained || "no reason given"}`;
      return h("details", { class: "pair" }, h("summary", null, `${a} and ${b}: `, outside(said)), flags(pair.flags), questions(pair.findings, a, b));
    }),
    reply.problems.length > 0 && [h("h3", null, "Set aside"), h("ul", { class: "notes" }, reply.problems.map((one) => h("li", null, outside(one))))],
    decision(reply, reply.winner, context, name),
    exports(reply, context),
  ];
}

const namer = (images) => {
  const letters = new Map(images.map((image, i) => [image.id, letterOf(i)]));
  return (id) => letters.get(id) || id;
};
const list = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`);
const flags = (all) => all.map((flag) => h("p", { class: "flag" }, h("b", null, "Look at this: "), outside(flag)));
const foot = (reply) => h("p", { class: "note caveat" }, outside(reply.note), !reply.note.includes(reply.judge) && h("span", { class: "small" }, " Judge: ", outside(reply.judge), "."));

function figure(image, name, mark, place = "") {
  return h("figure", { class: mark ? "creative winner" : "creative" },
    h("div", { class: "frame" }, image.uri ? h("img", { src: image.uri, alt: `Image ${name(image.id)}` }) : h("span", { class: "nophoto" }, "no picture")),
    h("figcaption", null, place && h("span", { class: "place" }, place), h("span", { class: "letter" }, name(image.id)), mark && h("span", { class: "tag won" }, h("span", { "aria-hidden": "true" }, "✓ "), mark), h("span", { class: "small file" }, outside(image.id))));
}

/** Where the probability lies between the two: the bar grows from the middle towards the preferred one. */
function odds(p, a, b) {
  return h("div", { class: "odds", "aria-hidden": "true" }, h("span", null, a),
    h("span", { class: "bar" }, h("span", { class: "toward", style: { left: `${100 * Math.min(1 - p, 0.5)}%`, width: `${100 * Math.abs(p - 0.5)}%` } }), h("span", { class: "middle" })), h("span", null, b));
}

function questions(findings, a, b) {
  if (!findings.length) return h("p", { class: "muted" }, "This judge gives no reasons.");
  const answer = { "A>B": [a, "for"], "A<B": [b, "for"], "A=B": ["even", "even"], yes: ["yes", "even"], no: ["no", "even"] };
  return h("div", { class: "scroll", role: "region", "aria-label": `Reasons for ${a} and ${b}`, tabindex: 0 },
    table({ class: "reasons" }, ["Question", "Speaks for", `In ${a} it saw`, `In ${b} it saw`], findings.map((one) => {
      const [word, look] = answer[one.answer] || [one.answer, "even"];
      return { cells: [outside(one.asks || one.question), h("span", { class: `answer ${look}` }, outside(word)), outside(one.reason_a || "–"), outside(one.reason_b || "–")] };
    })));
}

function strengths(order, name) {
  const low = Math.min(...order.map((one) => one.interval[0]), -0.1);
  const high = Math.max(...order.map((one) => one.interval[1]), 0.1);
  const at = (value) => `${(100 * (value - low)) / (high - low)}%`;
  return h("div", { class: "scroll", role: "region", "aria-label": "How sure the order is", tabindex: 0 }, h("table", { class: "strengths" },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "Image"), h("th", { scope: "col" }, "Chance of being the best"), h("th", { scope: "col" }, "Strength, with 95 % interval"))),
    h("tbody", null, order.map((one) => h("tr", null, h("th", { scope: "row" }, outside(name(one.id))),
      h("td", null, h("span", { class: "value" }, percent(one.p_best)), h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "fill", style: { width: `${100 * one.p_best}%` } }))),
      h("td", null, h("span", { class: "value" }, number(one.strength)), h("span", { class: "small" }, ` ${number(one.interval[0])} to ${number(one.interval[1])}`),
        h("span", { class: "delta", "aria-hidden": "true" }, h("span", { class: "band", style: { left: at(one.interval[0]), right: `calc(100% - ${at(one.interval[1])})` } }), h("span", { class: "dot", style: { left: at(one.strength) } }))))))));
}

// -------------------------------------------------------------------------- what a person makes of it

function decision(reply, winner, context, name) {
  const said = h("p", { class: "small", role: "status" });
  const note = h("textarea", { id: "decision-note", rows: 2, maxlength: 4000 });
  const choices = context.images.map((image, i) => h("label", { class: "tick choice" },
    h("input", { type: "radio", name: "choice", value: image.id, required: true, checked: image.id === winner, id: `choice-${i}` }),
    h("span", null, h("b", null, name(image.id)), " ", h("span", { class: "small" }, outside(image.id)), image.id === winner && h("span", { class: "small" }, " the judge's choice"))));
  const form = h("form", { class: "decision", onsubmit: async (event) => {
    event.preventDefault();
    const chosen = form.querySelector("[name=choice]:checked").value;
    const agreed = chosen === winner;
    const subject = { campaign: context.words.title || "untitled", creatives: context.images.map((image) => image.id).join(" | "), preferred: winner || "", judge: reply.judge };
    if (!subject.preferred) delete subject.preferred;
    if (!(await feedback("creative", subject, agreed ? "accept" : chosen, note.value.trim()))) return;
    said.textContent = agreed ? `Stored: you agree with ${name(winner)}.` : `Stored: you chose ${name(chosen)}.`;
  } },
  h("h3", null, "What do you choose?"), h("div", { class: "choices", role: "radiogroup", "aria-label": "What do you choose?" }, choices),
  h("label", { class: "stacked", for: note.id }, "Note"), note, h("div", { class: "row" }, h("button", null, "Store my choice"), said));
  return form;
}

function exports(reply, context) {
  const problem = h("div");
  const rate = h("input", { type: "number", id: "base-rate", min: 0.001, max: 99, step: "any", inputmode: "decimal", placeholder: "2", value: context.extra.rate, oninput: () => { context.extra.rate = rate.value; } });
  const missing = (field, text) => {
    fill(problem, failure(text));
    field.focus();
  };
  const one = ([form, word, ending, type]) => h("button", { type: "button", onclick: async (event) => {
    const button = event.currentTarget;
    const share = Number(rate.value) / 100;
    fill(problem);
    if (["plan", "bandit"].includes(form) && !(share > 0 && share < 1)) return missing(rate, `${word}: say what share of impressions is usually clicked, in percent, such as 2.`);
    button.disabled = true;
    try {
      const found = await context.exported({ export: form, ...(form === "csv" ? {} : { base_rate: share }) });
      if (typeof found.export !== "string") throw new Error("The service gave no export.");
      download(`creatives-${form}.${ending}`, found.export, type);
      toast(`${word} downloaded.`, { time: 2500 });
    } catch (error) {
      fill(problem, failure(`${word}: ${error.message}`));
    } finally {
      button.disabled = false;
    }
  } }, word);
  const whole = h("button", { type: "button", onclick: () => download("creatives-reply.json", `${JSON.stringify(reply, null, 2)}\n`, "application/json") }, "Reply as JSON");
  return h("div", { class: "exports" }, h("h3", null, "Take it away"),
    h("div", { class: "row wrap" },
      h("label", { class: "field" }, "Usual click rate, % ", rate, h("span", { class: "small" }, " for plan and priors"))),
    h("div", { class: "row wrap" }, FORMS.map(one), whole), problem);
}
