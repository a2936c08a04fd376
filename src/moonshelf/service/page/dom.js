// The one way in which anything gets onto the page. Text goes in as text nodes and never as markup, attributes
// are set by name, and addresses of the catalogue pass `safeLink`: what a feed says can only ever be read.

const SVG = "http://www.w3.org/2000/svg";

/** An element. `props`: on… are listeners, `style` is an object, `true` sets a bare attribute, null leaves out. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name === "value") element.value = value;
    else if (name === "checked") element.checked = true;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) add(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
}

export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

const ICONS = {
  photo: "M3 5h3l1.2-1.8h3.6L12 5h3a1 1 0 0 1 1 1v8a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zm6 2.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6z",
  close: "M5 5l8 8M13 5l-8 8",
  filter: "M3 5h12M5.5 9h7M8 13h2",
};

/** A small drawing that says nothing: the words beside it, or a label, do. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  for (const [key, value] of Object.entries({ viewBox: "0 0 18 18", "aria-hidden": "true", class: "icon" })) svg.setAttribute(key, value);
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Text from outside: kept apart from its surroundings, whichever direction it is written in. */
export const outside = (text, props) => h("bdi", props, text);

/** A category path: its last part, and small beside it what is above. */
export function path(text) {
  const parts = text.split(" > ");
  return [outside(parts.pop()), parts.length > 0 && [" ", h("span", { class: "small above" }, outside(parts.join(" › ")))]];
}

/** Categories that have none below them: the service counts a category at every level of its path. */
export const leaves = (counted) => counted.filter(({ value }) => !counted.some((other) => other.value.startsWith(`${value} > `)));

/** Words that only a screen reader gets. */
export const unseen = (...text) => h("span", { class: "hidden" }, ...text);

/** A table that stands as it is where there is room, and with one column a row on a phone, where `stack` of
 *  app.css takes it apart. The roles say that it still is a table. A row is cells, the first its heading. */
export function table(props, names, rows) {
  return h("table", { ...props, class: `${props.class} stack`, role: "table" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, names.map((name) => h("th", { scope: "col", role: "columnheader" }, name)))),
    h("tbody", { role: "rowgroup" }, rows.map(({ cells, ...more }) => h("tr", { ...more, role: "row" },
      cells.map((cell, i) => (i ? h("td", { role: "cell", "data-name": typeof names[i] === "string" ? names[i] : null }, cell) : h("th", { scope: "row", role: "rowheader" }, cell)))))));
}

/** The first of many pieces, and a button for the next ones. */
export function few(box, pieces, most) {
  const foot = h("div", { class: "more-row" });
  const more = () => {
    const shown = box.children.length;
    box.append(...pieces.slice(shown, shown + most));
    const left = pieces.length - box.children.length;
    fill(foot, left > 0 && h("button", { type: "button", onclick: more }, `Show ${Math.min(most, left)} more of ${left}`));
    if (!shown) return;
    const first = box.children[shown];
    if (!first.querySelector("a, button")) first.tabIndex = -1;
    (first.querySelector("a, button") || first).focus({ preventScroll: true });
  };
  more();
  return [box, foot];
}

/** A link to a web address of the catalogue, or its plain text where it is anything else. */
export function safeLink(address, text) {
  let url = null;
  try {
    url = new URL(address);
  } catch {
    // no address at all: shown as text
  }
  if (url === null || !["http:", "https:"].includes(url.protocol)) return outside(text || address);
  return h("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, outside(text || address), unseen(" (opens a new tab)"));
}

let saying = 0;

/** Tell a screen reader; the same sentence twice is said twice. */
export function say(text) {
  const status = document.getElementById("status");
  status.textContent = "";
  clearTimeout(saying);
  saying = setTimeout(() => { status.textContent = text; }, 60);
}

const whole = new Intl.NumberFormat("en-GB");
export const count = (n, one, many) => `${whole.format(n)} ${n === 1 ? one : many || `${one}s`}`;
export const number = (n, digits = 2) => n.toFixed(digits).replace("-", "−");
export const percent = (share) => {
  const value = 100 * share;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)} %`;
};

export function ordinal(n) {
  const ending = n % 100 >= 11 && n % 100 <= 13 ? "th" : ["th", "st", "nd", "rd"][n % 10] || "th";
  return `${n}${ending}`;
}

export function price(value, currency) {
  if (value === null || value === undefined) return "";
  try {
    return new Intl.NumberFormat("en-GB", { style: "currency", currency }).format(value);
  } catch {
    return `${whole.format(value)} ${currency || ""}`.trim();
  }
}
