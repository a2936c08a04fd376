// Search: words, a photo, or both; or "like this product". What is asked lives in the hash, so a search can be
// shared and gone back to; only a photo cannot, it stays in the memory of this tab.

import { request, thumbnail } from "./api.js";
import { count, fill, h, icon, leaves, outside, say, unseen } from "./dom.js";
import { Facets, FIELDS } from "./facets.js";
import { card, failure, feedback, load, productLink, skeletons, stop, toast } from "./parts.js";
import { prepared, receive } from "./picture.js";

const PAGE = 24;
const LAST = 900; // the service pages no further
const MODES = [["hybrid", "Both"], ["vector", "Vectors"], ["text", "Words"]];

const photos = new Map(); // number in the hash -> data URI
let latest = 0;

export function search(main, place) {
  let params = place.params;
  let liked = ""; // title of the product to be like, once it is known
  const control = new AbortController();
  const facets = new Facets(setFilter);

  const words = h("input", { type: "search", id: "words", name: "q", maxlength: 2000, autocomplete: "off", placeholder: "red running shoe", "aria-label": "What are you looking for?" });
  const file = h("input", { type: "file", id: "photo", accept: "image/*", class: "hidden", onchange: () => { take([...file.files]); file.value = ""; } });
  const held = h("span", { class: "held", hidden: true });
  const reason = h("input", { type: "checkbox", id: "reason", onchange: () => go(params.get("q") || photo() ? {} : null) });
  const modes = MODES.map(([value, word]) => [h("input", { type: "radio", name: "mode", id: `mode-${value}`, value, onchange: () => go(params.get("q") ? {} : null) }), h("label", { for: `mode-${value}` }, word)]);
  const box = h("form", { class: "ask", role: "search", onsubmit: (event) => { event.preventDefault(); go({ like: null }); } },
    h("div", { class: "box" }, held, words, h("label", { class: "button photo-button", for: "photo" }, icon("photo"), h("span", { class: "photo-word" }, "Photo"), unseen(": choose a picture to search with")), file, h("button", { class: "primary" }, "Search")),
    h("p", { class: "drop-hint" }, "Drop the photo here"),
    h("div", { class: "options" },
      h("fieldset", { class: "segments" }, h("legend", { class: "small" }, "Find by"), modes),
      h("label", { class: "tick" }, reason, h("span", null, "Let the model reason about what I ask"))));
  const problem = h("div");
  const line = h("p", { class: "found-line" });
  const notes = h("div");
  const results = h("div", { class: "results" });
  const intro = h("div", { class: "start" });
  const found = h("section", { class: "found", "aria-labelledby": "results-title" }, h("h2", { class: "hidden", id: "results-title" }, "Results"), h("div", { class: "found-head" }, line, facets.button), facets.chips, notes, results);
  // After the form and before some thirty boxes of filters: from the words a few tabs lead to the first result.
  const skip = h("a", { class: "skip", href: "#results", onclick: (event) => { event.preventDefault(); results.querySelector("a[href]:not([tabindex])")?.focus(); } }, "Skip to the results");
  const layout = h("div", { class: "shelf" }, skip, facets.home, found);
  main.append(h("h1", null, "Find a product"), box, problem, intro, layout);
  receive(box, take, control.signal);

  function photo() {
    return photos.get(params.get("photo"));
  }

  /** Change the hash: `changes` over what the form says. null only keeps the form's choice for the next search. */
  function go(changes) {
    if (changes === null) return;
    const next = new URLSearchParams(params);
    const form = { q: words.value.trim(), mode: main.querySelector("[name=mode]:checked").value, reason: reason.checked ? "on" : "" };
    if (form.mode === "hybrid") form.mode = "";
    for (const [name, value] of Object.entries({ ...form, ...changes })) {
      if (value) next.set(name, value);
      else next.delete(name);
    }
    if (next.get("like")) for (const name of ["q", "photo"]) next.delete(name);
    const hash = `#/search?${next}`;
    if (location.hash === hash) ask();
    else location.hash = hash;
  }

  function setFilter(field, values) {
    const next = new URLSearchParams(params);
    for (const name of field === null ? [...Object.keys(FIELDS), "price_min", "price_max"] : [field]) next.delete(name);
    for (const value of values) next.append(field, value);
    location.hash = `#/search?${next}`;
  }

  async function take(files) {
    if (!files.length) return;
    fill(problem);
    try {
      latest += 1;
      const number = String(latest);
      photos.set(number, await prepared(files[0]));
      go({ photo: number, like: null });
    } catch (error) {
      fill(problem, failure(error.message));
    }
  }

  function showQuery() {
    words.value = params.get("q") || "";
    reason.checked = params.get("reason") === "on";
    const mode = MODES.some(([value]) => value === params.get("mode")) ? params.get("mode") : "hybrid";
    main.querySelector(`#mode-${mode}`).checked = true;
    const like = params.get("like");
    const drop = (what, changes) => h("button", { type: "button", class: "plain", "aria-label": `Remove ${what}`, onclick: () => { go(changes); words.focus(); } }, icon("close"));
    held.hidden = !photo() && !like;
    if (photo()) fill(held, h("img", { src: photo(), alt: "The photo to search with", width: 44, height: 44 }), drop("the photo", { photo: null }));
    else if (like) {
      liked = "";
      const name = h("span", { class: "like-name" }, "like ", h("a", { href: productLink(like) }, outside(like)));
      fill(held, name, drop("the product to be like", { like: null }));
      request(`v1/products/${encodeURIComponent(like)}`, { signal: control.signal }).then((product) => {
        if (params.get("like") !== like || !name.isConnected) return;
        liked = product.title;
        line.querySelector("b")?.replaceChildren(outside(spoken()));
        fill(name, thumbnail(product, { size: 44, lazy: false }), h("span", null, "like ", h("a", { href: productLink(like) }, outside(product.title || like))));
      }, () => { /* the search itself says what is wrong */ });
    } else fill(held);
  }

  function body() {
    const filters = {};
    for (const field of Object.keys(FIELDS)) if (params.getAll(field).length) filters[field] = params.getAll(field);
    for (const name of ["price_min", "price_max"]) {
      const value = Number(params.get(name));
      if (params.get(name) && Number.isFinite(value) && value >= 0) filters[name] = value;
    }
    const asked = { filters, limit: PAGE, offset: 0, facets: true };
    if (params.get("like")) return { ...asked, like: params.get("like") };
    if (params.get("q")) asked.text = params.get("q");
    if (photo()) asked.image = photo();
    if (asked.text && ["vector", "text"].includes(params.get("mode"))) asked.mode = params.get("mode");
    if (params.get("reason") === "on") asked.reason = "on";
    return asked;
  }

  /** What is asked, in words: for feedback, and for the line over the results. */
  function spoken() {
    if (params.get("like")) return `like ${liked || params.get("like")}`;
    return [params.get("q"), photo() && "a photo"].filter(Boolean).join(" with ");
  }

  function ask() {
    const asked = body();
    const lost = params.get("photo") && !photo();
    fill(problem, lost && h("p", { class: "state" }, "The photo of this search was not part of the link. Add it again to search with it."));
    facets.show(params);
    const idle = !asked.text && !asked.image && !asked.like;
    intro.hidden = !idle;
    layout.hidden = idle;
    if (idle) {
      stop(results);
      return invite(intro, control.signal);
    }
    fill(line);
    fill(notes);
    return load(results, {
      skeleton: skeletons(8),
      work: (signal) => request("v1/search", { body: asked, signal }),
      show: (reply) => {
        facets.show(params, reply.facets);
        show(asked, reply);
      },
    });
  }

  function show(asked, reply) {
    fill(notes, reply.notes.length > 0 && h("ul", { class: "notes" }, reply.notes.map((note) => h("li", null, outside(note)))));
    if (!reply.hits.length) {
      fill(line, "Nothing was found.");
      say("Nothing was found.");
      const filtered = Object.keys(asked.filters).length > 0;
      fill(results, h("div", { class: "state" }, h("p", null, filtered ? "No product passes all filters." : "Try other words, or a photo."), filtered && h("button", { type: "button", onclick: () => setFilter(null, []) }, "Clear all filters")));
      return;
    }
    const grid = h("ol", { class: "grid" });
    const foot = h("div", { class: "more-row" });
    fill(results, grid, foot);
    let shown = 0;
    const append = (part) => {
      const first = grid.children.length;
      const rows = part.hits.map((hit, i) => card(hit.product, { hit, mode: part.mode, place: part.offset + i + 1, judged }));
      grid.append(...rows);
      shown += rows.length;
      const total = reply.facets?.total;
      const among = typeof total === "number" ? ` of ${count(total, "product")}${Object.keys(asked.filters).length ? " that pass the filters" : ""}` : "";
      fill(line, `The best ${shown}${among} for `, h("b", null, outside(spoken())));
      say(`${count(shown, "result")} for ${spoken()}${part.more ? ", there are more" : ""}.`);
      fill(foot, part.more && part.offset + PAGE <= LAST && h("button", { type: "button", onclick: () => next(part.offset + part.hits.length) }, "More results"));
      if (first) rows[0]?.querySelector("h3 a").focus({ preventScroll: true });
    };
    const next = (offset) => load(foot, {
      work: (signal) => request("v1/search", { body: { ...asked, offset, facets: false }, signal }),
      show: append,
    });
    append(reply);
  }

  /** "Does it fit?": two buttons of a hit; the last one pressed counts. */
  function judged(product) {
    const button = (verdict, word, long) => h("button", { type: "button", class: "act judge", "aria-pressed": "false", "aria-label": `${long}: ${product.title || product.id}`, onclick: async (event) => {
      const pressed = event.currentTarget;
      if (!(await feedback("search", { query: params.get("like") ? `like ${params.get("like")}` : spoken(), id: product.id }, verdict))) return;
      for (const other of pressed.parentElement.children) other.setAttribute("aria-pressed", String(other === pressed));
      toast(verdict === "accept" ? "Noted: it fits." : "Noted: it does not fit.", { time: 2500 });
    } }, word);
    return h("span", { class: "judges" }, button("accept", "Fits", "Fits what I asked"), button("reject", "Does not", "Does not fit what I asked"));
  }

  const view = {
    update: (changed) => {
      params = changed.params;
      showQuery();
      ask();
    },
    close: () => {
      control.abort();
      stop(results);
      facets.close();
    },
  };
  view.update(place);
  if (!spoken()) words.focus();
  return view;
}

/** Before anything is asked: what the catalogue holds, as places to begin. It may fail without a word. */
function invite(box, signal) {
  fill(box, h("p", { class: "lead" }, "Type what you are looking for, or drop, paste or choose a photo. Both together work too: a photo of a bag and the words “in blue”."));
  request("v1/catalogue", { signal }).then((reply) => {
    const names = new Set(leaves(reply.categories).map(({ value }) => value.split(" > ").pop()));
    if (box.hidden || !names.size) return;
    box.append(h("h2", null, "Or begin with"), h("ul", { class: "begin" }, [...names].slice(0, 16).map((leaf) => h("li", null, h("a", { class: "chip", href: `#/search?${new URLSearchParams({ q: leaf })}` }, outside(leaf))))),
      h("p", { class: "small" }, `${count(reply.products, "product")} in this catalogue`));
  }, () => { /* an invitation is no place for an error; the search will say it */ });
}
