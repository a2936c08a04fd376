// Review of creatives: two images or more, what the product is, what shoppers look for; then a comparison (two) or
// a ranking. What was given stays while the page is open, so that a look at another view costs nothing.

import { request } from "./api.js";
import { count, fill, h, icon, outside, say } from "./dom.js";
import { load, skeletons, stop, failure } from "./parts.js";
import { prepared, receive } from "./picture.js";
import { compared, letterOf, ranked } from "./verdict.js";

const MOST = 16; // images that one review takes, as the service does by default
const kept = { images: [], title: "", interest: "", result: null, extra: { rate: "" } };

export function creatives(main) {
  const control = new AbortController();
  const file = h("input", { type: "file", id: "creative-files", accept: "image/*", multiple: true, class: "hidden", onchange: () => { take([...file.files]); file.value = ""; } });
  const tiles = h("ol", { class: "tiles-row", "aria-label": "Images" });
  const problem = h("div");
  const title = h("input", { type: "text", id: "creative-title", maxlength: 1000, value: kept.title, oninput: () => { kept.title = title.value; } });
  const interest = h("textarea", { id: "interest", rows: 3, value: kept.interest, "aria-describedby": "interest-hint", oninput: () => { kept.interest = interest.value; } });
  const start = h("button", { class: "primary" });
  const hint = h("span", { class: "small", id: "start-hint" });
  const judge = h("div");
  let off = false; // this service has no judge
  const result = h("section", { class: "verdict-box", "aria-label": "Verdict" });
  const form = h("form", { class: "review", onsubmit: (event) => { event.preventDefault(); ask(); } },
    h("div", { class: "images" }, tiles,
      h("label", { class: "drop", for: "creative-files" }, icon("photo"), h("span", null, h("b", null, "Add images"), " drop, paste or choose two or more"), file)),
    h("div", { class: "words" },
      h("label", { class: "stacked" }, "Title of the product", title),
      h("label", { class: "stacked", for: "interest" }, "What shoppers search for ", h("span", { class: "small", id: "interest-hint" }, "one search a line, at most ten")), interest,
      h("div", { class: "row" }, start, hint)));
  main.append(h("h1", null, "Which image should run?"),
    h("p", { class: "lead" }, "Give the images of one product. The judge compares them two by two, in both orders, and says which one it prefers, how sure it is, and why."),
    judge, form, problem, result);
  request("v1/creatives", { signal: control.signal }).then((reply) => {
    off = !reply.judge;
    if (!off) return;
    fill(judge, h("p", { class: "note near", role: "status", id: "no-judge" }, "Nothing can be compared here: ", outside(reply.why), "."));
    showImages();
  }, () => { /* a comparison itself says what is wrong */ });
  receive(form, take, control.signal);

  async function take(files) {
    fill(problem);
    const failed = [];
    for (const one of files) {
      if (kept.images.length >= MOST) {
        failed.push(`One review takes ${MOST} images; the rest was left out.`);
        break;
      }
      try {
        const uri = await prepared(one);
        kept.images.push({ id: unique(one.name || "pasted image"), uri, text: "" });
        kept.result = null;
      } catch (error) {
        failed.push(error.message);
      }
    }
    if (failed.length) fill(problem, failure(failed.join(" ")));
    showImages();
  }

  function unique(name) {
    const clean = name.replace(/[\p{C}\s]+/gu, " ").trim().slice(0, 200) || "image";
    const taken = new Set(kept.images.map((image) => image.id));
    let id = clean;
    for (let i = 2; taken.has(id); i += 1) id = `${clean} (${i})`;
    return id;
  }

  function showImages() {
    fill(tiles, kept.images.map((image, i) => h("li", null,
      h("img", { src: image.uri, alt: `Image ${letterOf(i)}, ${image.id}` }),
      h("span", { class: "letter" }, letterOf(i)),
      h("button", { type: "button", class: "plain remove", "aria-label": `Remove image ${letterOf(i)}, ${image.id}`, onclick: () => {
        kept.images.splice(i, 1);
        kept.result = null;
        showImages();
        say(`Removed. ${count(kept.images.length, "image")} left.`);
        (tiles.children[Math.min(i, kept.images.length - 1)]?.querySelector("button") || file).focus();
      } }, icon("close")),
      h("input", { type: "text", maxlength: 1000, value: image.text, placeholder: "Words on it", "aria-label": `Words on image ${letterOf(i)}, if any`, oninput: (event) => { image.text = event.target.value; } }))));
    tiles.hidden = !kept.images.length;
    const enough = kept.images.length >= 2;
    start.disabled = off || !enough;
    start.textContent = kept.images.length > 2 ? `Rank ${kept.images.length} images` : "Compare";
    hint.textContent = off ? "This service has no judge." : enough ? "" : "It takes two images.";
    if (kept.result) show(kept.result);
    else {
      stop(result);
      fill(result);
    }
  }

  function asked() {
    const lines = interest.value.split("\n").map((line) => line.trim().slice(0, 200)).filter(Boolean).slice(0, 10);
    return { title: title.value.trim(), interest: lines };
  }

  const sent = (image) => ({ id: image.id, image: image.uri, text: image.text.trim() });

  function ask() {
    const images = [...kept.images];
    if (images.length < 2) return;
    const words = asked();
    const two = images.length === 2;
    load(result, {
      skeleton: skeletons(1, "page"),
      work: (signal) => two
        ? request("v1/creatives/compare", { body: { ...words, a: sent(images[0]), b: sent(images[1]) }, signal })
        : request("v1/creatives/rank", { body: { ...words, creatives: images.map(sent) }, signal }),
      show: (reply) => {
        kept.result = { reply, images, words, two };
        show(kept.result);
        result.querySelector("h2")?.focus();
      },
    });
  }

  function show({ reply, images, words, two }) {
    const exported = (wanted) => request("v1/creatives/rank", { body: { ...words, creatives: images.map(sent), ...wanted } });
    fill(result, (two ? compared : ranked)(reply, { images, words, exported, extra: kept.extra }));
  }

  showImages();
  return { close: () => { control.abort(); stop(result); } };
}
