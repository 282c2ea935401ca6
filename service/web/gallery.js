/** The list of indexed images, and the name of the serving model. */

import { $ } from "./dom.js";
import { showFigures } from "./model.js";
import { showProblem } from "./notices.js";
import { isReady } from "./readiness.js";
import { showModel, tile } from "./results.js";
import { apiKey, requestJson } from "./server.js";

const PAGE_SIZE = 24;

const state = {
  controller: new AbortController(), // aborted when the list is reloaded
  cursor: null,
  currentKey: undefined,
};

/** Append the next page of indexed images. */
export async function loadPage() {
  const { signal } = state.controller;
  const moveFocus = document.activeElement === $("more"); // a button loses the focus when it is disabled
  $("more").disabled = true;
  try {
    const cursor = state.cursor === null ? "" : `&cursor=${encodeURIComponent(state.cursor)}`;
    const page = await requestJson(`v1/images?limit=${PAGE_SIZE}${cursor}`, { signal });
    if (signal.aborted) return;
    const tiles = page.images.map(({ key, thumbnail }) => tile(key, thumbnail, key));
    $("gallery").append(...tiles);
    state.cursor = page.next_cursor ?? null;
    $("indexed").hidden = false;
    $("gallery-empty").hidden = $("gallery").childElementCount > 0;
    $("more").hidden = state.cursor === null;
    if (moveFocus) tiles[0]?.firstChild.focus({ preventScroll: true });
    markCurrent(state.currentKey);
  } catch (problem) {
    if (!signal.aborted && isReady()) showProblem(problem, loadPage);
  } finally {
    if (!signal.aborted) $("more").disabled = false;
  }
}

/** Load the list of images and the name of the model again. */
export function reload() {
  state.controller.abort();
  state.controller = new AbortController();
  state.cursor = null;
  $("gallery").replaceChildren();
  $("forget-key").hidden = !apiKey();
  loadPage();
  requestJson("v1/models").then(({ models }) => {
    const model = models.find(({ serving }) => serving);
    showModel(model);
    showFigures(model);
  }, () => {});
}

/** Mark the tile of the selected image, if it is in the list. */
export function markCurrent(key) {
  state.currentKey = key;
  for (const button of $("gallery").querySelectorAll(".tile")) {
    if (button.dataset.key === key) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}
