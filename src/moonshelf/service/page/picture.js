// Photos that a person gives. They are drawn anew on a canvas, at most 1024 pixels a side, as JPEG, before they
// leave the browser: the upload is small, and place, time and camera in the file's metadata stay at home.

const SIDE = 1024;
const QUALITY = 0.9;

/** A data URI of a file. Raises Error with a sentence to show. */
export async function prepared(file) {
  if (file.type && !file.type.startsWith("image/")) throw new Error(`${file.name || "This file"} is not a picture.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "This file"} is not a picture that this browser can read. JPEG, PNG and WebP work.`);
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency: white, as on a product page
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", QUALITY);
}

/** Pictures of a drop or a paste. */
export const pictures = (transfer) => [...(transfer?.files || [])].filter((file) => !file.type || file.type.startsWith("image/"));

/** Take files that are dropped on `zone` or pasted anywhere; `take` gets them. Ends with `signal`. */
export function receive(zone, take, signal) {
  let depth = 0;
  const over = (event) => { if ([...event.dataTransfer.types].includes("Files")) event.preventDefault(); };
  const mark = (change) => { depth = Math.max(0, depth + change); zone.classList.toggle("dropping", depth > 0); };
  window.addEventListener("dragover", over, { signal });
  window.addEventListener("dragenter", (event) => { over(event); mark(1); }, { signal });
  window.addEventListener("dragleave", () => mark(-1), { signal });
  window.addEventListener("drop", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault(); // anywhere: a photo beside the box must not replace the page
    depth = 0;
    mark(0);
    take([...event.dataTransfer.files]);
  }, { signal });
  document.addEventListener("paste", (event) => {
    const files = pictures(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    take(files);
  }, { signal });
}
