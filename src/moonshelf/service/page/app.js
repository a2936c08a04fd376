// The router: which view stands in <main>, told by the hash, so that back, forward and a shared link work.
// A view is a function (main, place) that builds itself and returns {update?, close?}; `place` holds the id and
// the parameters of the hash. Where only the parameters change, `update` is called and nothing is built anew.

import { catalogue } from "./catalogue.js";
import { creatives } from "./creatives.js";
import { duplicates } from "./duplicates.js";
import { fill, h } from "./dom.js";
import { product } from "./product.js";
import { search } from "./search.js";

const VIEWS = { search, product, duplicates, creatives, catalogue };
const TITLES = { search: "Search", product: "Product", duplicates: "Duplicates", creatives: "Creatives", catalogue: "Catalogue" };

const main = document.getElementById("main");
let current = { name: null, id: null, view: null };

function placeOf(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [name, ...rest] = path.split("/");
  let id = rest.join("/");
  try {
    id = decodeURIComponent(id);
  } catch {
    // a link that was cut: taken as it is, and not found
  }
  return { name: name || "search", id, params: new URLSearchParams(query) };
}

function route() {
  if (location.hash === "#main") return; // the skip link
  const place = placeOf(location.hash);
  const same = place.name === current.name && place.id === current.id;
  if (same && current.view?.update) return current.view.update(place);
  const first = current.name === null;
  current.view?.close?.();
  main.className = `view-${VIEWS[place.name] ? place.name : "none"}`;
  fill(main);
  const build = VIEWS[place.name] || unknown;
  current = { name: place.name, id: place.id, view: null };
  current.view = build(main, place);
  document.title = `${TITLES[place.name] || "Not found"} · Moonshelf`;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === place.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (first) return;
  window.scrollTo(0, 0);
  const heading = main.querySelector("h1");
  heading?.setAttribute("tabindex", "-1");
  heading?.focus({ preventScroll: true }); // a screen reader says where it is now
}

function unknown(box) {
  fill(box, h("h1", null, "There is no such page"), h("p", { class: "lead" }, "The address names no view of this service. ", h("a", { href: "#/search" }, "Go to the search")));
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", route);
route();
