// What several views share: the states of something that is being fetched, messages, chips, the bar of shares,
// the card of a product.

import { request, thumbnail } from "./api.js";
import { fill, h, ordinal, outside, price, say, unseen } from "./dom.js";

const SLOW = 3000; // milliseconds after which waiting is spoken of
const running = new WeakMap();

export const productLink = (id) => `#/product/${encodeURIComponent(id)}`;
export const likeLink = (id) => `#/search?${new URLSearchParams({ like: id })}`;

/** Fetch and show: skeleton at once, "still working" with a cancel button when slow, one sentence and a retry
 *  on failure. A second call for the same box ends the first. `work` gets a signal; `show` gets its result. */
export async function load(box, { skeleton, work, show }) {
  stop(box);
  const control = new AbortController();
  running.set(box, control);
  const again = () => load(box, { skeleton, work, show });
  const waiting = h("div", { class: "waiting" });
  fill(box, waiting, skeleton?.());
  box.setAttribute("aria-busy", "true");
  const cancel = h("button", { type: "button", onclick: () => control.abort("cancelled") }, "Cancel");
  const slow = setTimeout(() => {
    fill(waiting, h("p", { class: "state" }, "Still working. The first answers after a start take longest.", cancel));
    say("Still working.");
  }, SLOW);
  try {
    const result = await work(control.signal);
    if (control.signal.aborted) return;
    fill(box);
    show(result);
  } catch (error) {
    if (control.signal.aborted && control.signal.reason !== "cancelled") return;
    const cancelled = control.signal.aborted;
    if (!cancelled && error.status === undefined) console.error(error);
    const text = cancelled ? "Cancelled." : error.status === undefined ? "Something went wrong on this page." : error.message;
    fill(box, failure(text, again, cancelled));
  } finally {
    clearTimeout(slow);
    if (running.get(box) === control) {
      running.delete(box);
      box.removeAttribute("aria-busy");
    }
  }
}

export const stop = (box) => running.get(box)?.abort("replaced");

/** One sentence and a way on. */
export function failure(text, again, calm = false) {
  return h("div", { class: calm ? "state" : "state bad", role: calm ? "status" : "alert" }, h("p", null, text), again && h("button", { type: "button", onclick: again }, "Try again"));
}

export const skeletons = (n, kind = "card") => () =>
  h("div", { class: `skeletons of-${kind}`, "aria-hidden": "true" }, Array.from({ length: n }, () => h("span", { class: "skeleton" })));

// ----------------------------------------------------------------------------------------- messages

/** A message at the foot of the page, with one action or none. It stays while it is looked at; `ended` is
 *  called when its time is over. Gives a function that removes it without that. */
export function toast(text, { action, act, ended, time = 6000, bad = false } = {}) {
  const button = action && h("button", { type: "button" }, action);
  const box = h("div", { class: bad ? "toast bad" : "toast", role: bad ? "alert" : null }, h("span", null, text), button);
  let timer = 0;
  const remove = () => { clearTimeout(timer); box.remove(); };
  const start = () => { clearTimeout(timer); timer = setTimeout(() => { remove(); ended?.(); }, time); };
  button?.addEventListener("click", () => { remove(); act(); });
  for (const name of ["mouseenter", "focusin"]) box.addEventListener(name, () => clearTimeout(timer));
  for (const name of ["mouseleave", "focusout"]) box.addEventListener(name, start);
  document.getElementById("toasts").append(box);
  if (!bad) say(text);
  start();
  return remove;
}

/** Store what a person says. True where it is stored; a message says so where it is not. */
export async function feedback(kind, subject, verdict, note = "") {
  const short = Object.fromEntries(Object.entries(subject).map(([key, value]) => [key, String(value).slice(0, 2000)]));
  try {
    await request("v1/feedback", { body: { kind, subject: short, verdict: verdict.slice(0, 500), note: note.slice(0, 4000) } });
    return true;
  } catch (error) {
    toast(`Not stored. ${error.message}`, { bad: true, time: 12000 });
    return false;
  }
}

// ------------------------------------------------------------------------------------------- pieces

export const chip = (name, value, props = {}) =>
  h("li", { class: props.differs ? "chip wrong" : "chip" }, h("span", { class: "key" }, outside(name)), unseen(": "), " ", outside(value), props.differs && [h("span", { class: "mark", "aria-hidden": "true" }, " ✗"), unseen(" differs")]);

/** Names and values of attributes, folded as far as is safe: case, spaces, color and colour. */
export const folded = (text) => text.toLowerCase().replace(/[\s_-]+/g, " ").trim().replace(/\bcolor\b/g, "colour").replace(/^base ?colour$/, "colour");

/** One value may be more precise than the other: "navy" and "navy blue" agree. */
export function agree(a, b) {
  const words = (text) => new Set(folded(text).split(/[^\p{L}\p{N}]+/u).filter(Boolean));
  const [x, y] = [words(a), words(b)];
  const within = (one, other) => [...one].every((word) => other.has(word));
  return within(x, y) || within(y, x);
}

/** What feed and model say of a product: [{name, feed, model}], in the feed's order. */
export function said(product) {
  const rows = new Map();
  for (const [name, value] of Object.entries(product.attributes || {})) rows.set(folded(name), { name, feed: value });
  for (const [name, value] of Object.entries(product.reasoned_attributes || {})) rows.set(folded(name), { ...(rows.get(folded(name)) || { name }), model: value });
  return [...rows.values()];
}

/** The attributes of a product, the feed's first; what the model alone says, or says otherwise, is marked as its
 *  own. Where not all fit, both have a part. `props` gives more properties of a chip by its name. */
export function chips(product, most, props = () => ({})) {
  const rows = said(product);
  const feed = rows.filter((one) => one.feed !== undefined).map((one) => [one.name, one.feed]);
  const own = rows.filter((one) => one.model !== undefined && (one.feed === undefined || !agree(one.feed, one.model)) && !(folded(one.name) === "category" && product.category && agree(product.category, one.model)));
  own.sort((a, b) => (a.feed === undefined) - (b.feed === undefined)); // what contradicts the feed comes first
  if (!feed.length && !own.length) return null;
  const first = Math.min(feed.length, Math.max(most - own.length, Math.ceil(most / 2)));
  const rest = own.slice(0, most - first);
  const left = feed.length + own.length - first - rest.length;
  const last = (value) => value.split(" > ").pop();
  return h("ul", { class: "chips", "aria-label": "Attributes" },
    feed.slice(0, first).map(([name, value]) => chip(name, last(value), props(name))),
    rest.map(({ name, model }) => h("li", { class: "chip model" }, h("span", { class: "by" }, "model"), unseen(" says "), " ", h("span", { class: "key" }, outside(name)), unseen(": "), " ", outside(last(model)))),
    left > 0 && h("li", { class: "chip more" }, `${left} more`));
}

const whole = (share) => (share > 0 && share < 0.005 ? "<1\u202f%" : `${Math.round(100 * share)}\u202f%`); // a narrow space
const SHARES = [["image", "picture"], ["text", "title"], ["rationale", "reasoning"]];

/** How much of a vector came from each: a bar, and the same in words. */
export function shares(weights) {
  if (!weights) return null;
  const width = (key) => `${Math.max(0, Math.min(1, weights[key])) * 100}%`;
  return h("div", { class: "shares" },
    h("span", { class: "stack", "aria-hidden": "true" }, SHARES.map(([key]) => h("span", { class: `part ${key}`, style: { width: width(key) } }))),
    h("p", { class: "small" }, unseen("Share of the vector: "), SHARES.map(([key, word], i) => [i > 0 && h("span", { class: "hidden" }, ", "), h("span", { class: "share" }, h("span", { class: `dot ${key}`, "aria-hidden": "true" }), `${word} ${whole(weights[key])}`), " "])));
}

/** Where a hit comes from, in words. */
export function reasons(why) {
  const said = [];
  if (why.vector_rank) said.push(`${ordinal(why.vector_rank)} by vector${typeof why.cosine === "number" ? ` (cosine ${why.cosine.toFixed(2)})` : ""}`);
  if (why.text_rank) said.push(`${ordinal(why.text_rank)} by words${typeof why.bm25 === "number" ? ` (BM25 ${why.bm25.toFixed(1)})` : ""}`);
  return said.join(", ");
}

const SCORES = { hybrid: "fused", vector: "cosine", text: "BM25" };

/** A product in a grid. `hit` adds score and reasons, `judged` the two buttons of feedback. */
export function card(product, { hit, mode, place, judged, compact = false } = {}) {
  const title = product.title || "Without a title";
  const cost = price(product.price, product.currency);
  return h("li", { class: "card" },
    h("a", { class: "photo", href: productLink(product.id), tabindex: -1, "aria-hidden": "true" }, thumbnail(product)),
    h("div", { class: "body" },
      h("h3", null, h("a", { href: productLink(product.id) }, outside(title))),
      h("p", { class: "small" }, cost && h("b", { class: "price" }, cost), cost && product.brand && " · ", product.brand && outside(product.brand)),
      !compact && chips(product, 5),
      !compact && product.rationale_valid === false && h("p", { class: "small warn" }, "The rationale broke its format."),
      !compact && shares(product.weights),
      hit && h("p", { class: "small why" }, place && `${place}. `, reasons(hit.why), mode === "hybrid" && h("span", { class: "muted" }, ` · ${SCORES.hybrid} ${hit.score.toFixed(4)}`)),
      h("div", { class: "acts" }, h("a", { href: likeLink(product.id), class: "act" }, "More like this", unseen(`: ${title}`)), judged?.(product))));
}

/** Copies of text that a person may want to take away as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name, class: "hidden" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
