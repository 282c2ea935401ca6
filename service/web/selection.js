/**
 * The selected image: its results, and its entry in the browser's history.
 *
 * Guarantees: a later selection replaces an earlier one, in whatever order their responses arrive.
 * Out of scope: resizing, rotating or converting images (the server gets the original bytes), changing the index.
 */

import { $ } from "./dom.js";
import { fileSize } from "./format.js";
import { markCurrent } from "./gallery.js";
import { showProblem } from "./notices.js";
import {
  NEIGHBOURS, announce, showCaption, showClasses, showImage, showNeighbours, showNoImage, showRecord, showWaiting,
} from "./results.js";
import { imagePath, request, requestJson } from "./server.js";

const state = {
  selection: null, // {file} or {key}
  controller: new AbortController(), // aborted when another image is selected
  history: new Map(), // history id -> selection, so that Back also returns to a dropped file
};

export const hasSelection = () => state.selection !== null;

/** Send all requests for an image; return the promises of its blob, its record, its classes and its neighbours. */
function requestResults({ file, key }, signal) {
  const path = key === undefined ? "" : imagePath(key);
  const thumbnail = async () => (await request(`${path}/thumbnail`, { signal })).blob();
  const image = file ? Promise.resolve(file) : thumbnail();
  return {
    image,
    record: file ? Promise.resolve(null) : requestJson(path, { signal }),
    classes: image.then((body) => requestJson("v1/classify", { body, signal })),
    neighbours: file
      ? requestJson(`v1/search?k=${NEIGHBOURS}`, { body: file, signal })
      : requestJson(`${path}/similar?k=${NEIGHBOURS}`, { signal }),
  };
}

/** Show a selection and its results. Pending requests of an earlier selection are aborted. */
async function show(selection) {
  state.controller.abort();
  state.controller = new AbortController();
  state.selection = selection;
  const { signal } = state.controller;
  const name = selection.key ?? (selection.file.name || "pasted image");
  $("problems").replaceChildren();
  $("announcement").textContent = "";
  $("answer").hidden = false;
  $("answer").setAttribute("aria-busy", "true");
  $("picker").classList.add("compact");
  document.title = `${name} – fc7`;
  markCurrent(selection.key);
  showCaption(name, selection.file && fileSize(selection.file.size));
  showWaiting();

  const part = async (response, render, hide) => {
    try {
      const value = await response;
      if (signal.aborted) return null;
      render(value);
      return value;
    } catch (problem) {
      if (signal.aborted) return null;
      hide();
      showProblem(problem, () => show(selection));
      return null;
    }
  };
  const hideSection = (list) => () => { $(list).closest("section").hidden = true; };
  const results = requestResults(selection, signal);
  const [, , classes, neighbours] = await Promise.all([
    part(results.image, (blob) => showImage(blob, name), () => showNoImage("There is no image to show.")),
    part(results.record, (record) => record && showRecord(record), () => {}),
    part(results.classes, showClasses, hideSection("bars")),
    part(results.neighbours, showNeighbours, hideSection("neighbours")),
  ]);
  if (signal.aborted) return;
  $("answer").removeAttribute("aria-busy");
  announce(classes, neighbours);
}

/** Repeat the requests for the selected image, if there is one. */
export function showAgain() {
  if (state.selection) show(state.selection);
}

/** Return to the page without a selection. */
export function clear() {
  state.controller.abort();
  state.selection = null;
  $("answer").hidden = true;
  $("problems").replaceChildren();
  $("announcement").textContent = "";
  $("picker").classList.remove("compact");
  document.title = "fc7";
  markCurrent(undefined);
}

/** Show a selection as a new entry of the browser's history. */
function choose(selection) {
  const id = `${performance.timeOrigin}/${state.history.size}`; // a counter alone would be reused after a reload
  state.history.set(id, selection);
  const fragment = selection.key === undefined ? "" : `#${encodeURIComponent(selection.key)}`;
  history.pushState({ id }, "", location.pathname + location.search + fragment);
  show(selection);
}

/** Select the indexed image of a clicked tile, and scroll to the results. */
export function chooseTile(event) {
  const button = event.target.closest("button.tile");
  if (!button) return;
  choose({ key: button.dataset.key });
  $("caption").focus({ preventScroll: true });
  scrollTo({ top: 0 });
}

/** Select the first dropped, pasted or chosen file. Does nothing if there is none, as for pasted text. */
export function chooseFile(files) {
  if (files.length) choose({ file: files[0] });
}

/** Show the selection of the address and the history: on load, on Back, and after the address was edited. */
export function restore() {
  const selection = state.history.get(history.state?.id);
  const fragment = location.hash.slice(1);
  if (selection) return show(selection);
  if (!fragment) return clear();
  try {
    return show({ key: decodeURIComponent(fragment) });
  } catch {
    return clear(); // not a key: an edited address with a stray %
  }
}
