/** Renders images, classes and neighbours. */

import { $, el } from "./dom.js";
import { distanceText, fileSize, percent } from "./format.js";
import { apiKey, imagePath, request } from "./server.js";

const CLASSES = 5; // the server's default, and the number in figure 4 of the 2012 paper
export const NEIGHBOURS = 6;

export function showModel(model) {
  $("model").hidden = !model;
  $("model-name").textContent = model?.name ?? "";
  $("model-version").textContent = model ? `version ${model.version}` : "";
}

/** Show a thumbnail in `frame`. With an API key it has to be fetched, because <img> does not send the key. */
async function showThumbnail(frame, url, alt) {
  const missing = () => frame.replaceChildren(el("span", { className: "missing", textContent: "no thumbnail" }));
  if (!url) return missing();
  const image = el("img", { alt, draggable: false, decoding: "async" });
  image.addEventListener("error", missing);
  if (apiKey()) {
    try {
      image.src = URL.createObjectURL(await (await request(url)).blob());
    } catch {
      return missing();
    }
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } else {
    image.src = url;
  }
  return frame.replaceChildren(image);
}

/** Return a list item with a button that selects the indexed image `key`. `stored`: whether it has a thumbnail. */
export function tile(key, stored, alt, ...caption) {
  const thumb = el("span", { className: "thumb" });
  const button = el("button", { type: "button", className: "tile", title: key }, thumb, ...caption);
  button.dataset.key = key;
  // A relative address, so that the page also works below a path prefix that the server does not know.
  showThumbnail(thumb, stored && `${imagePath(key)}/thumbnail`, alt);
  return el("li", {}, button);
}

/** Show `blob` as the query image. */
export function showImage(blob, name) {
  const image = el("img", { alt: `Query image: ${name}`, draggable: false });
  const url = URL.createObjectURL(blob);
  image.addEventListener("load", () => URL.revokeObjectURL(url));
  image.addEventListener("error", () => {
    URL.revokeObjectURL(url);
    showNoImage("This browser cannot display this file.");
  });
  image.src = url;
  $("frame").replaceChildren(image);
}

export const showNoImage = (text) => $("frame").replaceChildren(el("p", { className: "missing", textContent: text }));

export const showCaption = (name, ...facts) =>
  $("caption").replaceChildren(el("strong", { textContent: name }), ...facts.filter(Boolean).map((fact) => ` · ${fact}`));

export const showRecord = ({ key, width, height, size }) => showCaption(key, `${width} × ${height}`, fileSize(size));

export function showClasses({ model, results }) {
  showModel(model);
  $("bars").replaceChildren(...results[0].predictions.map(({ label, probability }) => {
    const fill = el("div", { className: "fill" });
    fill.style.width = `${100 * probability}%`;
    const track = el("div", { className: "track" }, fill);
    track.setAttribute("aria-hidden", "true"); // the number next to it has the same information
    return el("li", {}, el("span", { className: "label", textContent: label }), track,
      el("data", { value: probability, textContent: percent(probability) }));
  }));
}

export function showNeighbours({ model, results }) {
  showModel(model);
  const tiles = results[0].neighbours.map(({ key, distance, thumbnail }) => {
    const item = tile(key, thumbnail, "", el("data", { value: distance, textContent: distanceText(distance) }),
      el("span", { className: "key", textContent: key }));
    item.firstChild.setAttribute("aria-label", `${key}, distance ${distanceText(distance)}`);
    return item;
  });
  const none = el("li", { className: "none", textContent: "No other images are indexed yet." });
  $("neighbours").replaceChildren(...(tiles.length ? tiles : [none]));
}

/** Draw both lists in outline until their responses arrive. */
export function showWaiting() {
  for (const list of ["bars", "neighbours"]) $(list).closest("section").hidden = false;
  $("bars").replaceChildren(...Array.from({ length: CLASSES }, () =>
    el("li", { className: "waiting" }, el("span", { className: "label", textContent: "waiting" }),
      el("div", { className: "track" }), el("data", { textContent: "–" }))));
  $("neighbours").replaceChildren(...Array.from({ length: NEIGHBOURS }, () =>
    el("li", {}, el("div", { className: "tile" }, el("span", { className: "thumb waiting" })))));
}

/** Summarize the complete result in the live region, for screen readers. */
export function announce(classes, neighbours) {
  const best = classes?.results[0].predictions[0];
  const nearest = neighbours?.results[0].neighbours;
  $("announcement").textContent = [
    best && `${best.label}, ${percent(best.probability)}.`,
    nearest?.length &&
      `${nearest.length} similar images. The nearest is ${nearest[0].key}, at distance ${distanceText(nearest[0].distance)}.`,
  ].filter(Boolean).join(" ");
}
