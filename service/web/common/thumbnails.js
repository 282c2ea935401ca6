/** Thumbnails of indexed images. */

import { el } from "./dom.js";
import { apiKey, imagePath, request } from "./server.js";

/** Show a thumbnail in `frame`. With an API key it has to be fetched, because <img> does not send the key. */
export const showThumbnail = (frame, key, stored = true) =>
  showPicture(frame, stored && `${imagePath(key)}/thumbnail`, "", "no thumbnail");

/** Return an element with a thumbnail. */
export function thumbnail(key, stored = true) {
  const frame = el("span.thumb");
  showThumbnail(frame, key, stored);
  return frame;
}

/** Show the picture at `path` in `frame`, or the text `otherwise` if it cannot be shown. */
export async function showPicture(frame, path, alt, otherwise) {
  const missing = () => frame.replaceChildren(el("span.missing", otherwise));
  if (!path) return missing();
  const image = el("img", { alt, draggable: false, decoding: "async" });
  image.onerror = missing;
  image.onload = () => URL.revokeObjectURL(image.src);
  try {
    image.src = apiKey() ? URL.createObjectURL(await (await request(path)).blob()) : path;
  } catch {
    return missing();
  }
  return frame.replaceChildren(image);
}

/**
 * Return a list item with a button that finds images similar to the indexed image `key`.
 * `name`: what screen readers read instead of the captions, which may be cut.
 */
export function tile(key, stored, name, ...captions) {
  return el("li", el("button.tile", { type: "button", title: key, data: { key } },
    thumbnail(key, stored), el("span", { ariaHidden: "true" }, ...captions), el("span.visually-hidden", name)));
}
