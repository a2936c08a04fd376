// Review of products that may be in the catalogue twice. A verdict takes its group off the list at once and is sent
// when its "undo" has gone (six seconds, or on leaving), because what is stored is kept for good. Keys: a accept,
// n not the same, j and k next and previous, u undo; they can be switched off, for those who dictate.

import { request, thumbnail } from "./api.js";
import { count, fill, h, outside, price, say, unseen } from "./dom.js";
import { evidence, reviewed } from "./evidence.js";
import { chips, feedback, load, productLink, skeletons, stop, toast } from "./parts.js";

const page = () => (window.matchMedia("(max-width: 46rem)").matches ? 5 : 20); // groups: one fills two screens of a phone
const KINDS = { duplicate: ["Duplicates", "one identifier, or nothing that speaks against it"], variant: ["Variants", "one model in another colour, size or material"], similar: ["Look alike", "by picture and title alone, without an identifier"] };
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const keyOf = (group) => group.members.map((member) => member.id).join("\n");

let shortcuts = true; // kept while the page is open

export function duplicates(main, place) {
  let params = place.params;
  const control = new AbortController();
  const pending = []; // verdicts that can still be undone, oldest first
  const hidden = new Set(); // keys of groups that were reviewed here
  const offset = { at: 0 };
  const tabs = h("nav", { class: "tabs", "aria-label": "Kinds" });
  const about = h("p", { class: "intro" });
  const notes = h("div");
  const list = h("div", { class: "groups" });
  const foot = h("div", { class: "more-row" });
  const all = h("input", { type: "checkbox", id: "reviewed", onchange: () => go({ reviewed: all.checked ? "1" : "" }) });
  const score = h("select", { id: "score", onchange: () => go({ min: score.value }) }, [["", "0.90"], ["0.95", "0.95"], ["0.98", "0.98"], ["0.8", "0.80"]].map(([value, word]) => h("option", { value }, word)));
  const keys = h("input", { type: "checkbox", checked: shortcuts, onchange: () => { shortcuts = keys.checked; } });
  const legend = [["a", "the same"], ["n", "not the same"], ["j", "next"], ["k", "previous"], ["u", "undo"]].map(([key, word]) => h("span", { class: "keys" }, h("kbd", null, key), ` ${word}`));
  const box = h("div");
  main.append(h("h1", null, "Is it in the catalogue twice?"), tabs, about,
    h("div", { class: "options" }, h("label", { class: "field" }, "Cosine at least ", score), h("label", { class: "tick" }, all, h("span", null, "Show reviewed groups too")), h("label", { class: "tick wide-only" }, keys, h("span", null, "Keys: ", legend))), notes, box);

  let chosen = "duplicate"; // where the address names no kind: the first that holds something
  const kind = () => (KINDS[params.get("kind")] ? params.get("kind") : chosen);

  function go(changes) {
    const next = new URLSearchParams(params);
    for (const [name, value] of Object.entries(changes)) {
      if (value) next.set(name, value);
      else next.delete(name);
    }
    location.hash = `#/duplicates?${next}`;
  }

  const fetched = (offset, signal) => {
    const query = new URLSearchParams({ kind: kind(), offset, limit: page(), reviewed: params.get("reviewed") === "1" });
    if (params.get("min")) query.set("min_score", params.get("min"));
    return request(`v1/duplicates?${query}`, { signal });
  };

  function showTabs(counts) {
    fill(tabs, Object.entries(KINDS).map(([name, [word]]) => {
      const next = new URLSearchParams(params);
      next.set("kind", name);
      return h("a", { href: `#/duplicates?${next}`, "aria-current": name === kind() ? "page" : null }, word, typeof counts?.[name] === "number" && h("span", { class: "count" }, unseen(", "), ` ${counts[name]}`, unseen(" groups")));
    }));
    about.textContent = `${KINDS[kind()][0]}: ${KINDS[kind()][1]}. Nothing is ever merged; what you say is stored beside the catalogue.`;
  }

  function ask() {
    showTabs(null);
    fill(notes);
    load(box, {
      skeleton: skeletons(3, "group"),
      work: async (signal) => {
        await flush();
        hidden.clear();
        const reply = await fetched(0, signal);
        const other = Object.keys(KINDS).find((name) => reply.counts[name]);
        if (KINDS[params.get("kind")] || reply.total || !other) return reply;
        chosen = other;
        return fetched(0, signal);
      },
      show: (reply) => {
        showTabs(reply.counts);
        fill(notes, reply.notes.length > 0 && h("ul", { class: "notes" }, reply.notes.map((note) => h("li", null, outside(note)))));
        fill(list);
        fill(box, h("h2", { class: "hidden" }, "Groups"), list, foot);
        append(reply);
        say(reply.total ? `${count(reply.total, "group")} to review.` : "Nothing to review.");
      },
    });
  }

  function append(reply) {
    const known = new Set([...list.children].map((element) => element.dataset.key));
    for (const group of reply.groups) {
      const key = keyOf(group);
      if (!known.has(key) && !hidden.has(key)) list.append(panel(group, key));
    }
    offset.at = reply.offset + reply.groups.length;
    const left = reply.total - offset.at;
    fill(foot, left > 0 && h("button", { type: "button", onclick: more }, `More groups (${left})`));
    if (!list.children.length && left <= 0) done();
  }

  /** What was reviewed has left the service's list, so the next page begins with what is still to be seen. */
  async function more() {
    const reviewing = params.get("reviewed") !== "1";
    load(foot, {
      work: async (signal) => { await flush(); return fetched(reviewing ? list.children.length : offset.at, signal); },
      show: append,
    });
  }

  const done = () => fill(foot, h("div", { class: "state" }, h("p", null, "Nothing is left to review here.")));

  function panel(group, key) {
    const letter = new Map(group.members.map((member, i) => [member.id, LETTERS[i] || `#${i + 1}`]));
    const name = (id) => letter.get(id) || id;
    const differing = new Set(group.pairs.flatMap((pair) => Object.keys(pair.attributes_differ)));
    const note = h("textarea", { rows: 2, maxlength: 4000, id: `note-${[...key].reduce((sum, c) => (31 * sum + c.codePointAt(0)) >>> 0, 7)}` });
    const only = h("button", { type: "button", class: "small-button", onclick: async () => {
      if (note.value.trim() && (await feedback("note", { about: "duplicates", ids: key.replaceAll("\n", " | ") }, "", note.value.trim()))) toast("The note is stored.", { time: 3000 });
    } }, "Store the note alone");
    const titles = group.members.map((member) => member.title || member.id).join(" and ");
    const element = h("article", { class: "group", tabindex: -1, "data-key": key, "aria-label": `${KINDS[group.kind][0]}: ${titles}` },
      h("ul", { class: "members" }, group.members.map((member) => side(member, name(member.id), differing))),
      h("div", { class: "case" },
        group.pairs.map((pair) => h("div", { class: "pair" },
          group.members.length > 2 && h("h3", null, `${name(pair.a)} and ${name(pair.b)}`),
          h("ul", { class: "evidence" }, evidence(pair, name)), reviewed(pair))),
        h("div", { class: "verdicts" },
          h("button", { type: "button", class: "primary", onclick: () => decide(element, group, "accept", note.value) }, "The same product"),
          h("button", { type: "button", onclick: () => decide(element, group, "reject", note.value) }, "Not the same")),
        h("details", { class: "note-box" }, h("summary", null, "Add a note"), h("label", { class: "hidden", for: note.id }, `Note on ${titles}`), note, h("p", { class: "small" }, "It goes with the verdict, or "), only)));
    return element;
  }

  function side(member, letter, differing) {
    return h("li", { class: "member" }, thumbnail(member),
      h("div", null,
        h("h3", null, h("span", { class: "letter" }, letter), " ", h("a", { href: productLink(member.id) }, outside(member.title || "Without a title"))),
        h("p", { class: "small" }, outside(member.id), member.brand && [" · ", outside(member.brand)], member.price !== null && [" · ", price(member.price, member.currency)]),
        chips(member, 8, (name) => ({ differs: differing.has(name.toLowerCase()) }))));
  }

  // -------------------------------------------------------------------------------------- verdicts

  function decide(element, group, verdict, note) {
    const following = element.nextElementSibling;
    const before = element.previousElementSibling;
    hidden.add(keyOf(group));
    element.remove();
    const entry = { group, verdict, note, element, following };
    const send = () => {
      pending.splice(pending.indexOf(entry), 1);
      return deliver(entry);
    };
    entry.send = () => { entry.close(); return send(); };
    entry.undo = () => {
      entry.close();
      pending.splice(pending.indexOf(entry), 1);
      back(entry);
      say("Undone.");
    };
    pending.push(entry);
    entry.close = toast(verdict === "accept" ? "Noted as the same product." : "Noted as not the same.", { action: "Undo", act: () => entry.undo(), ended: send });
    const next = following || before;
    if (next) next.focus();
    else {
      if (!foot.querySelector("button")) done();
      (foot.querySelector("button") || main.querySelector("h1")).focus();
    }
  }

  function back({ element, following, group }) {
    hidden.delete(keyOf(group));
    if (foot.querySelector(".state")) fill(foot);
    list.insertBefore(element, following?.isConnected ? following : null);
    if (list.isConnected) element.focus();
  }

  /** Every pair of the group gets the verdict; what could not be stored comes back. */
  async function deliver(entry, keepalive = false) {
    const { group, verdict, note } = entry;
    try {
      for (const pair of group.pairs) {
        const body = { kind: "duplicate", subject: { a: pair.a, b: pair.b }, verdict, note: note.trim() };
        const sent = request("v1/feedback", { body, keepalive });
        if (!keepalive) await sent; // a page that is going away has no time to wait
      }
    } catch (error) {
      toast(`Not stored. ${error.message}`, { bad: true, time: 12000 });
      back(entry);
    }
  }

  const flush = () => Promise.all([...pending].map((entry) => entry.send()));
  window.addEventListener("pagehide", () => { for (const entry of pending.splice(0)) deliver(entry, true); }, { signal: control.signal });

  document.addEventListener("keydown", (event) => {
    if (!shortcuts || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.target.closest("input:not([type=checkbox]), textarea, select")) return;
    const groups = [...list.children];
    const at = groups.indexOf(document.activeElement?.closest?.(".group"));
    const press = (word) => groups[at]?.querySelector(word).click();
    if (event.key === "j") (groups[at + 1] || groups[at])?.focus();
    else if (event.key === "k") (groups[at - 1] || groups[0])?.focus();
    else if (event.key === "a") press(".verdicts .primary");
    else if (event.key === "n") press(".verdicts button:not(.primary)");
    else if (event.key === "u") pending.at(-1)?.undo();
    else return;
    event.preventDefault();
  }, { signal: control.signal });

  const view = {
    update: (changed) => {
      params = changed.params;
      all.checked = params.get("reviewed") === "1";
      score.value = params.get("min") || "";
      ask();
    },
    close: () => {
      flush();
      control.abort();
      stop(box);
    },
  };
  view.update(place);
  return view;
}
