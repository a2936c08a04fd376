// The filters of a search: facets with counts, a price range, and the chips of what is chosen. On a phone the same
// form is moved into a drawer. A facet's counts are those of the reply; values of a field that is filtered are
// remembered from the reply before, so that a second value can be added. What is chosen is read when a box is
// ticked, not when it was drawn, and a reply that comes while a box is being pressed is drawn after it: a second
// tick that is quicker than the first one's reply adds to it.

import { count, fill, h, icon, outside, path, unseen } from "./dom.js";

export const FIELDS = {
  category: "Category", brand: "Brand", colour: "Colour", material: "Material", pattern: "Pattern",
  gender: "Gender", size: "Size", availability: "Availability", language: "Language",
};
const OPEN = ["category", "brand", "colour", "material"]; // the rest is folded
const SHOWN = 8; // values before "more"
const BELOW = " > ";
const RELEASES = ["pointerup", "pointercancel", "keyup"];

const above = (path) => path.split(BELOW).slice(0, -1).join(BELOW);
const depth = (path, all) => (all.includes(above(path)) ? 1 + depth(above(path), all) : 0);

/** Categories as a tree: the top ones, and below those that are chosen, or above a chosen one, the next level. */
function branches(all, chosen) {
  const open = (path) => chosen.some((one) => (one + BELOW).startsWith(path + BELOW));
  const under = (path) => all.filter((one) => above(one) === path).flatMap((one) => [one, ...(open(one) ? under(one) : [])]);
  return all.filter((one) => !all.includes(above(one))).flatMap((one) => [one, ...(open(one) ? under(one) : [])]);
}

export class Facets {
  /** `changed(field, values)` is called with what is chosen now; of `price_min` and `price_max` with one value. */
  constructor(changed) {
    this.changed = changed;
    this.known = {};
    this.unfolded = new Set();
    this.form = h("form", { class: "facets", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() });
    this.home = h("aside", { class: "side" }, this.form);
    this.button = h("button", { type: "button", class: "open-drawer", onclick: () => this.open() }, icon("filter"), h("span", null, "Filters"));
    this.drawer = document.getElementById("drawer");
    this.wide = window.matchMedia("(min-width: 62rem)");
    this.onWide = () => { if (this.wide.matches) this.drawer.close(); };
    this.wide.addEventListener("change", this.onWide);
    this.chips = h("ul", { class: "chosen", "aria-label": "Filters in use" });
    this.params = new URLSearchParams();
    this.later = null; // a reply that is drawn when the press ends
    this.pressed = false;
    this.press = (event) => { if (event.type === "pointerdown" || event.key === " ") this.pressed = true; };
    this.release = () => {
      if (!this.pressed) return;
      setTimeout(() => { // after the click that this release makes
        this.pressed = false;
        if (this.later) this.draw(this.later);
      });
    };
    for (const name of ["pointerdown", "keydown"]) this.form.addEventListener(name, this.press);
    for (const name of RELEASES) window.addEventListener(name, this.release);
  }

  close() {
    for (const name of RELEASES) window.removeEventListener(name, this.release);
    this.wide.removeEventListener("change", this.onWide);
    if (this.drawer.open) this.drawer.close();
  }

  open() {
    this.done = h("button", { type: "button", class: "primary", onclick: () => this.drawer.close() }, this.label());
    fill(this.drawer, h("div", { class: "drawer-head" }, h("h2", null, "Filters"), h("button", { type: "button", class: "plain", "aria-label": "Close the filters", onclick: () => this.drawer.close() }, icon("close"))), this.form, h("div", { class: "drawer-foot" }, this.done));
    this.drawer.onclick = (event) => { if (event.target === this.drawer) this.drawer.close(); };
    this.drawer.onclose = () => {
      this.home.append(this.form);
      fill(this.drawer);
      this.button.focus();
    };
    this.drawer.showModal();
  }

  label() {
    return this.total === undefined ? "Show the results" : `Show the results (${count(this.total, "product")})`;
  }

  /** Show what is chosen, and the counts of a reply where there is one. */
  show(params, reply) {
    this.params = new URLSearchParams(params);
    this.later = null;
    const chosen = Object.keys(FIELDS).flatMap((field) => params.getAll(field));
    const prices = ["price_min", "price_max"].filter((name) => params.get(name));
    const active = chosen.length + prices.length;
    this.button.lastChild.textContent = active ? `Filters (${active})` : "Filters";
    this.showChips(params, active);
    if (!reply) return;
    this.total = reply.total;
    if (this.done) this.done.textContent = this.label();
    if (this.pressed) this.later = reply;
    else this.draw(reply);
  }

  draw(reply) {
    this.later = null;
    const named = (element) => element.name + "\n" + element.value; // values move as their counts change
    const focused = this.form.contains(document.activeElement) ? document.activeElement : null;
    const groups = [];
    for (const [field, name] of Object.entries(FIELDS)) {
      const group = this.group(field, name, reply.fields[field] || []);
      if (group) groups.push(group);
    }
    groups.splice(2, 0, this.prices(reply));
    fill(this.form, groups);
    if (focused?.type === "checkbox") [...this.form.elements].find((one) => named(one) === named(focused))?.focus();
    else if (focused?.id) document.getElementById(focused.id)?.focus();
  }

  group(field, name, counted) {
    const chosen = this.params.getAll(field);
    if (!chosen.length || !this.known[field]) this.known[field] = counted.map((one) => one.value);
    const counts = new Map(counted.map((one) => [one.value, one.count]));
    const all = [...new Set([...chosen, ...counts.keys(), ...this.known[field]])];
    const values = field === "category" ? branches(all, chosen) : all;
    if (!values.length) return null;
    const shown = this.unfolded.has(field) ? values : values.slice(0, Math.max(SHOWN, chosen.length));
    const left = values.length - shown.length;
    const rows = shown.map((value) =>
      h("label", { class: "tick", style: field === "category" ? { "margin-left": `${1.1 * depth(value, all)}rem` } : {} },
        h("input", { type: "checkbox", name: field, value, checked: chosen.includes(value), onchange: () => this.toggle(field, value) }),
        h("span", { class: "value" }, field === "category" && !all.includes(above(value)) ? path(value) : outside(value.split(BELOW).pop())),
        counts.has(value) && h("span", { class: "count" }, unseen(", "), String(counts.get(value)), unseen(" products"))));
    const more = left > 0 && h("button", { type: "button", class: "link", id: `more-${field}`, onclick: (event) => {
      this.unfolded.add(field);
      const whole = this.group(field, name, counted);
      event.target.closest("details").replaceWith(whole);
      whole.querySelectorAll("input")[shown.length]?.focus();
    } }, `${left} more`, unseen(` of ${name}`));
    return h("details", { class: "facet", open: OPEN.includes(field) || chosen.length > 0 },
      h("summary", null, name), h("div", { role: "group", "aria-label": name }, rows, more));
  }

  prices(reply) {
    const params = this.params;
    if (typeof reply.price_max !== "number" && !params.get("price_min") && !params.get("price_max")) return null;
    const field = (name, word, bound) => h("label", null, h("span", { class: "small" }, word),
      h("input", {
        type: "number", min: 0, step: "any", inputmode: "decimal", id: name, value: params.get(name) || "",
        placeholder: typeof bound === "number" ? String(bound) : null,
        onchange: (event) => {
          const valid = event.target.value !== "" && event.target.checkValidity();
          this.changed(name, valid ? [event.target.value] : []);
        },
      }));
    return h("details", { class: "facet", open: true }, h("summary", null, "Price"),
      h("div", { class: "prices", role: "group", "aria-label": "Price" }, field("price_min", "from", reply.price_min), field("price_max", "to", reply.price_max)));
  }

  toggle(field, value) {
    const chosen = this.params.getAll(field);
    const off = chosen.includes(value);
    // A category covers what is below it: choosing one of these narrows it down, and leaving one widens it again.
    const others = chosen.filter((one) => one !== value && (field !== "category" || !(value + BELOW).startsWith(one + BELOW)));
    const wider = off && field === "category" && above(value) && !others.length ? [above(value)] : [];
    this.changed(field, off ? [...others, ...wider] : [...others, value]);
  }

  showChips(params, active) {
    const one = (name, text, off) => h("li", null,
      h("button", { type: "button", class: "chip off", onclick: off }, h("span", { class: "key" }, name), " ", outside(text), icon("close"), unseen(" remove this filter")));
    const found = [];
    for (const [field, name] of Object.entries(FIELDS)) {
      const chosen = params.getAll(field);
      for (const value of chosen) found.push(one(name.toLowerCase(), value, () => this.changed(field, chosen.filter((other) => other !== value))));
    }
    for (const [name, word] of [["price_min", "price from"], ["price_max", "price to"]]) {
      if (params.get(name)) found.push(one(word, params.get(name), () => this.changed(name, [])));
    }
    if (active > 1) found.push(h("li", null, h("button", { type: "button", class: "link", onclick: () => this.changed(null, []) }, "Clear all")));
    this.chips.hidden = !found.length;
    fill(this.chips, found);
  }
}
