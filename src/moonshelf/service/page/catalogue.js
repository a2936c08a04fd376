// The dashboard: how much is in the catalogue, how well it is filled, where title and picture disagree, what was
// broken, and what state the index is in.

import { request, thumbnail } from "./api.js";
import { count, few, fill, h, leaves, outside, path, percent, say, table, unseen } from "./dom.js";
import { load, productLink, shares, skeletons, stop } from "./parts.js";
import { arbiter, reviewer } from "./product.js";

const MOST = 12; // categories before "all"
const FEW = 6; // conflicts, and rejected rows, before "more"
const SAID = { duplicate: "duplicates", creative: "creatives", attribute: "attributes", search: "search results", note: "notes" };

export function catalogue(main) {
  const box = h("div");
  const gaps = h("div");
  main.append(h("h1", null, "The catalogue"), box, gaps);
  load(box, {
    skeleton: skeletons(4, "tile"),
    work: (signal) => request("v1/catalogue", { signal }),
    show: (reply) => {
      fill(box, dashboard(reply));
      say(`${count(reply.products, "product")}.`);
      suggested(gaps); // after the rest, so that a service that refuses says so once
    },
  });
  return { close: () => [box, gaps].forEach(stop) };
}

// What `moonshelf enrich --catalogue` suggests for empty attributes; nothing is shown where it never ran.
function suggested(box) {
  load(box, {
    skeleton: () => null,
    work: (signal) => request("v1/suggestions?limit=50", { signal }),
    show: (reply) => fill(box, reply.total > 0 && h("section", null, h("h2", null, "Gaps that could be filled"),
      h("p", { class: "intro" }, `${count(reply.total, "value")} suggested for empty attributes, the least sure first. What you say is kept as feedback, and counts when the feed is enriched again.`),
      few(h("ul", { class: "conflicts" }), reply.suggestions.map((one) => h("li", null, thumbnail(one.product, { size: 96 }),
        h("div", null, h("h3", null, h("a", { href: productLink(one.product.id) }, outside(one.product.title || one.product.id))),
          h("dl", { class: "sides" }, h("div", null, h("dt", null, outside(one.name)), h("dd", null, outside(one.value))),
            h("div", null, h("dt", null, "from ", outside(one.source)), h("dd", null, percent(one.confidence), one.accepted ? " (in the feed)" : ""))),
          reviewer(one)))), FEW))),
  });
}

function dashboard(reply) {
  const share = (n) => (reply.products ? n / reply.products : 0);
  return [
    h("dl", { class: "tiles" },
      tile("Products", reply.products.toLocaleString("en-GB"), null, `store version ${reply.store_version}`),
      tile("With a picture", percent(share(reply.with_picture)), share(reply.with_picture), `${count(reply.with_picture, "product")}`),
      tile("Reasoned", percent(share(reply.reasoned)), share(reply.reasoned), reply.reasoned ? `${count(reply.rationales_valid, "rationale")} kept the format` : "embedded without rationales"),
      tile("Conflicts", reply.conflicts_total.toLocaleString("en-GB"), null, "title or feed says other than the model")),
    index(reply),
    h("div", { class: "halves" },
      h("section", null, h("h2", null, "How well it is filled"), reply.coverage.length ? bars("Field", "Filled", reply.coverage.map((one) => [one.field, one.share, `${percent(one.share)} (${one.filled.toLocaleString("en-GB")})`])) : nothing("No fields yet.")),
      h("section", null, h("h2", null, "Categories"), categories(reply))),
    h("section", null, h("h2", null, "What the vectors rest on"), reply.weights ? [shares(reply.weights), h("p", { class: "small" }, "Mean over all products.")] : nothing("No weights are stored.")),
    h("section", null, h("h2", null, "Title or feed against picture"), conflicts(reply)),
    h("section", null, h("h2", null, "Set aside by the last embedding"), broken(reply)),
    Object.keys(reply.feedback).length > 0 && h("section", null, h("h2", null, "What people said"), h("p", null, Object.entries(reply.feedback).map(([kind, n], i) => [i > 0 && ", ", `${n.toLocaleString("en-GB")} on `, outside(SAID[kind] || kind)]))),
  ];
}

const nothing = (text) => h("p", { class: "muted" }, text);

function tile(name, big, share, small) {
  return h("div", { class: "tile" }, h("dt", null, name), h("dd", { class: "big" }, big),
    h("dd", null, share === null ? null : h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "fill", style: { width: `${100 * share}%` } }))), h("dd", { class: "small" }, small));
}

function bars(first, second, rows) {
  return h("table", { class: "bars" }, h("thead", { class: "hidden" }, h("tr", null, h("th", { scope: "col" }, first), h("th", { scope: "col" }, second))),
    h("tbody", null, rows.map(([name, share, text, link]) => h("tr", null,
      h("th", { scope: "row" }, link ? h("a", { href: link }, path(name)) : outside(name)),
      h("td", null, h("div", { class: "measure" }, h("span", { class: "bar", "aria-hidden": "true" }, h("span", { class: "fill", style: { width: `${100 * Math.min(1, share)}%` } })), h("span", { class: "small" }, text)))))));
}

function categories(reply) {
  if (!reply.categories.length) return nothing("The feed names no categories.");
  const found = leaves(reply.categories);
  const most = Math.max(...found.map((one) => one.count));
  const rows = found.map((one) => [one.value, one.count / most, one.count.toLocaleString("en-GB"), `#/search?${new URLSearchParams({ q: one.value.split(" > ").pop(), category: one.value })}`]);
  const first = bars("Category", "Products", rows.slice(0, MOST));
  if (rows.length <= MOST) return first;
  const box = h("div", null, first, h("button", { type: "button", class: "link", onclick: () => { fill(box, bars("Category", "Products", rows)); box.querySelectorAll("a")[MOST].focus(); } }, `All ${rows.length} categories`));
  return box;
}

function index(reply) {
  const good = reply.index && !reply.index_note;
  const facts = [["Model", reply.model], ["Fingerprint", reply.fingerprint], ["Reasoning", reply.reason]];
  for (const [key, value] of Object.entries(reply.index || {})) if (["string", "number", "boolean"].includes(typeof value)) facts.push([`Index: ${key.replaceAll("_", " ")}`, String(value)]);
  return h("section", null, h("h2", null, "Index"),
    h("p", { class: good ? "note" : "note near" }, good ? "The index is up to date." : reply.index ? ["The index is not used: ", outside(reply.index_note), "."] : ["There is no index; every search reads all vectors. ", outside(reply.index_note)]),
    h("details", null, h("summary", null, "Model and index in detail"), h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, outside(name)), h("dd", null, outside(value || "–")))))));
}

function conflicts(reply) {
  if (!reply.conflicts.length) return nothing("None were found.");
  return [
    h("p", { class: "intro" }, "The title or the feed says one thing, the model wrote another after seeing the picture. Either may be wrong."),
    few(h("ul", { class: "conflicts" }), reply.conflicts.map((one) => h("li", null, thumbnail(one.product, { size: 96 }),
      h("div", null, h("h3", null, h("a", { href: productLink(one.product.id) }, outside(one.product.title || one.product.id))),
        h("dl", { class: "sides" }, h("div", null, h("dt", null, outside(one.field), ", feed"), h("dd", null, outside(one.feed))), h("div", null, h("dt", null, outside(one.field), ", model"), h("dd", null, outside(one.model)))),
        arbiter(one.product.id, one.field, one.feed, one.model)))), FEW),
    reply.conflicts_total > reply.conflicts.length && h("p", { class: "small" }, `The first ${reply.conflicts.length} of ${reply.conflicts_total.toLocaleString("en-GB")}.`),
  ];
}

function broken(reply) {
  if (!reply.broken.length) return nothing("Nothing: every row and picture could be used.");
  const id = (one) => (one.id ? outside(one.id) : h("span", { class: "muted" }, "–", unseen("none")));
  const whole = table({ class: "broken" }, ["Row", "Id", "Field", "What is wrong", "Outcome"],
    reply.broken.map((one) => ({ cells: [String(one.row), id(one), outside(one.field), outside(one.reason), one.fatal ? "set aside" : "taken without it"] })));
  const body = whole.querySelector("tbody");
  const rows = [...body.children];
  const [, more] = few(fill(body), rows, FEW);
  return [
    h("div", { class: "scroll", role: "region", "aria-label": "Rejected rows", tabindex: 0 }, whole), more,
    reply.broken_total > reply.broken.length && h("p", { class: "small" }, `The first ${reply.broken.length} of ${reply.broken_total.toLocaleString("en-GB")}.`),
  ];
}
