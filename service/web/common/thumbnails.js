/** Thumbnails of indexed images. */

import { el } from "./dom.js";
import { apiKey, imagePath, request } from "./server.js";

/** Show a thumbnail in `frame`. With an API key it has to be fetched, because <img> does not send the key. */
export async function showThumbnail(frame, key, stored, alt = "") {
  return showPicture(frame, stored && `${imagePath(key)}/thumbnail`, alt, "no thumbnail");
}

/** Show the picture at `path` in `frame`, or the text `otherwise` if it cannot be shown. */
export async function showPicture(frame, path, alt, otherwise) {
  const missing = () => frame.replaceChildren(el("span", { className: "missing", textContent: otherwise }));
  if (!path) return missing();
  const image = el("img", { alt, draggable: false, decoding: "async" });
  image.addEventListener("error", missing);
  if (apiKey()) {
    try {
      image.src = URL.createObjectURL(await (await request(path)).blob());
    } catch {
      return missing();
    }
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } else {
    image.src = path;
  }
  return frame.replaceChildren(image);
}

/**
 * Return a list item with a button that finds images similar to the indexed image `key`.
 * `name`: what screen readers read instead of the captions, which may be cut.
 */
export function tile(key, stored, name, ...captions) {
  const thumb = el("span", { className: "thumb" });
  const node = el("button", { type: "button", className: "tile", title: key, data: { key } },
    thumb, el("span", { ariaHidden: "true" }, ...captions), el("span", { className: "visually-hidden", textContent: name }));
  showThumbnail(thumb, key, stored);
  return el("li", {}, node);
}
