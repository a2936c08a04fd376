// Talking to the service: one function for requests, one sentence for every way in which they fail, the API key
// (kept in sessionStorage only), and pictures, which are fetched with the key where there is one.

import { h, outside } from "./dom.js";

const STORED = "moonshelf-key";

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** An address below the page, so that a service behind a path of a proxy works too. */
const address = (path) => new URL(path.replace(/^\//, ""), document.baseURI);
const headers = () => (sessionStorage.getItem(STORED) ? { Authorization: `Bearer ${sessionStorage.getItem(STORED)}` } : {});

/** JSON of a reply. Raises ApiError with a sentence to show; anything else only where `signal` ended it. */
export async function request(path, { body, signal, keepalive = false } = {}) {
  const sent = { method: body ? "POST" : "GET", headers: headers(), signal, keepalive };
  if (body) {
    sent.headers["Content-Type"] = "application/json";
    sent.body = JSON.stringify(body);
  }
  let reply;
  try {
    reply = await fetch(address(path), sent);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The service cannot be reached. Check that it is running and that you are connected.");
  }
  if (reply.status === 401) {
    await askForKey(sent.headers.Authorization);
    signal?.throwIfAborted();
    return request(path, { body, signal, keepalive });
  }
  if (!reply.ok) throw new ApiError(await sentence(reply), reply.status);
  try {
    return await reply.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The service gave an answer that is not JSON. Is something else listening at this address?");
  }
}

async function sentence(reply) {
  let said = "";
  try {
    const { error } = await reply.json();
    said = typeof error?.message === "string" ? error.message.slice(0, 500) : "";
    if (said && error.param && !said.includes(error.param)) said = `${error.param}: ${said}`;
  } catch {
    // no JSON: the status has to do
  }
  said = said.trim().replace(/^[a-z]/, (letter) => letter.toUpperCase()).replace(/([^.!?…])$/, "$1.");
  const wait = seconds(reply.headers.get("Retry-After"));
  const again = wait === null || /try again/i.test(said) ? "" : ` Try again in ${wait === 1 ? "1 second" : `${wait} seconds`}.`;
  if (reply.status === 429) return `${said || "The service has more requests than it can take."}${again || (said ? "" : " Try again in a moment.")}`;
  if (reply.status === 501) return said || "This service does not do that.";
  if (reply.status === 503) return `${said || "The service is not ready yet."}${again}`;
  if (reply.status === 504) return said || "The service took too long and gave up.";
  if (reply.status === 413) return said || "That is more than the service takes in one request.";
  if (reply.status >= 500) return "The service had an error of its own. Its log says more; trying again may help.";
  return said || `The service refused the request (status ${reply.status}).`;
}

function seconds(value) {
  if (!value) return null;
  const wait = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isFinite(wait) ? Math.max(1, Math.ceil(wait)) : null;
}

// ------------------------------------------------------------------------------------------ the key

let asking = null;

/** Resolves once there is another key than `used`; one dialog for however many requests wait for it. */
function askForKey(used) {
  if (headers().Authorization && headers().Authorization !== used) return Promise.resolve();
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("key-dialog");
    const input = document.getElementById("key-input");
    const why = used ? "The key was not accepted. Check it, or ask whoever runs the service." : "Whoever runs it can give you one.";
    document.getElementById("key-why").textContent = why;
    sessionStorage.removeItem(STORED);
    let given = "";
    const form = document.getElementById("key-form");
    form.onsubmit = (event) => {
      event.preventDefault();
      given = input.value.trim();
      if (/^[\x21-\x7e]+$/.test(given)) dialog.close();
      else document.getElementById("key-why").textContent = "A key has letters, digits and signs only, no spaces.";
    };
    document.getElementById("key-cancel").onclick = () => { given = ""; dialog.close(); };
    dialog.oncancel = () => { given = ""; };
    dialog.onclose = () => {
      input.value = "";
      asking = null;
      if (given) {
        sessionStorage.setItem(STORED, given);
        resolve();
      } else reject(new ApiError("This service needs an API key. Try again to enter one.", 401));
    };
    dialog.showModal();
    input.focus();
  });
  return asking;
}

// ----------------------------------------------------------------------------------------- pictures

/** The picture of a product, or words in its place. Only the service's own thumbnails are ever asked for. */
export function thumbnail(product, { size = 192, lazy = true } = {}) {
  const none = () => h("span", { class: "nophoto" }, "no picture");
  if (!/^\/v1\/thumbnails\/[\w-]+\.jpg$/.test(product.thumbnail ?? "")) return none();
  const alt = product.title ? `Picture of ${product.title}` : "Picture of a product without a title";
  const image = h("img", { alt, width: size, height: size, decoding: "async", loading: lazy ? "lazy" : "eager" });
  // Until it has come, its place says what it will show: below the fold that may be long.
  const wait = h("span", { class: "wait", "aria-hidden": "true" }, outside(product.title || "A picture"));
  const frame = h("span", { class: "thumb" }, image, wait);
  image.addEventListener("load", () => wait.remove(), { once: true });
  image.addEventListener("error", () => frame.replaceWith(none()), { once: true });
  const url = address(product.thumbnail);
  if (headers().Authorization) blobOf(url, image, () => frame.replaceWith(none()));
  else image.src = url;
  return frame;
}

/** With a key: an <img> cannot send it, so the bytes are fetched, shown as a blob: and let go once shown. */
async function blobOf(url, image, failed) {
  try {
    let reply = await fetch(url, { headers: headers() });
    if (reply.status === 429) {
      await new Promise((done) => setTimeout(done, 1000 * Math.min(10, seconds(reply.headers.get("Retry-After")) ?? 1)));
      reply = await fetch(url, { headers: headers() });
    }
    if (!reply.ok) throw new Error(String(reply.status));
    const held = URL.createObjectURL(await reply.blob());
    const free = () => URL.revokeObjectURL(held);
    image.addEventListener("load", free, { once: true });
    image.addEventListener("error", free, { once: true });
    image.loading = "eager"; // a lazy one that never comes into view would hold its blob for ever
    image.src = held;
  } catch {
    failed();
  }
}
