/**
 * The view Ask: a picture, its answer, and the way through similar pictures.
 *
 * Guarantees: a later selection replaces an earlier one, in whatever order their responses arrive.
 * Out of scope: resizing, rotating or converting pictures. The server gets the original bytes.
 */

import { $, announce, button, el } from "../common/dom.js";
import { handover } from "../common/handover.js";
import { clearProblems, showProblem } from "../common/notices.js";
import { currentView, go, route } from "../common/router.js";
import { signals } from "../common/server.js";
import { showThumbnail } from "../common/thumbnails.js";
import { showAnswer, showName, showParts, showWaiting } from "./answer.js";
import { askKey } from "./results.js";
import { loadSamples } from "./samples.js";
import { answerOf, clearStrip, markSelected, neighbourOf, retryFailed, strip } from "./strip.js";

const state = {
  source: null, // {item} of the strip, or {key} of an indexed image
  requests: signals(), // aborted when another picture is selected
  entries: new Map(), // id in the browser's history -> {source, trail}, so that Back also returns to a dropped file
};

const nameOf = ({ item, key }) => key ?? item.name;

/** Show a picture and its answer. Pending requests for an earlier one are aborted. */
async function show(entry) {
  const signal = state.requests.next();
  const { source } = entry;
  state.source = source;
  clearProblems();
  announce("");
  $("answer").hidden = false;
  $("beside").hidden = true;
  $("answer").ariaBusy = "true";
  $("picker").classList.add("compact");
  $("samples").hidden = true;
  document.title = `${nameOf(source)} – fc7`;
  markSelected(source.item ?? entry.trail[0]?.source.item);
  showTrail(entry);
  showName(nameOf(source), source);
  const slow = setTimeout(showWaiting, source.item?.result ? 200 : 0); // a known answer appears without flashing
  try {
    const result = source.item ? await answerOf(source.item) : await askKey(source.key, strip.mode, signal);
    if (signal.aborted) return;
    const sentence = showAnswer(source, result);
    const keys = source.key === undefined ? result.neighbours.slice(0, 3).map(({ key }) => key) : [source.key];
    handover.asked = { name: nameOf(source), keys };
    if (result.problem) showProblem(result.problem);
    announce(`${sentence}. ${result.neighbours.length} similar pictures.`);
  } catch (problem) {
    if (signal.aborted) return;
    showParts(false);
    showProblem(problem, () => {
      if (source.item) source.item.promise = null; // ask again
      show(entry);
    });
  } finally {
    clearTimeout(slow);
  }
  $("answer").ariaBusy = null;
}

/** Show the pictures that led here; each goes back to itself. */
function showTrail({ source, trail }) {
  $("trail").hidden = trail.length === 0;
  const steps = trail.map(({ source: step }, i) =>
    el("li", button(nameOf(step), () => history.go(i - trail.length), { className: "link", title: nameOf(step) })));
  const here = el("span", { ariaCurrent: "page", title: nameOf(source) }, nameOf(source));
  $("trail").firstElementChild.replaceChildren(...steps, el("li", here));
}

/** Show an entry as a new step in the browser's history, or instead of the current one. */
function choose(entry, replace = false) {
  const id = `${performance.timeOrigin}/${state.entries.size}`; // a counter alone would be reused after a reload
  state.entries.set(id, entry);
  const { key } = entry.source;
  go(key === undefined ? "" : `#${encodeURIComponent(key)}`, { replace, state: { id } });
}

const currentEntry = () => state.entries.get(history.state?.id);

strip.select = (item, replace = false) => {
  const steps = currentEntry()?.trail.length ?? 0;
  choose({ source: { item }, trail: [] }, replace && steps === 0 && state.source !== null);
};

/** Find pictures similar to an indexed one. The way there is kept as a trail. */
function searchOn(key) {
  const entry = currentEntry();
  choose({ source: { key }, trail: entry ? [...entry.trail, entry] : [] });
  $("caption").focus({ preventScroll: true });
  scrollTo({ top: 0 });
}

/** Return to the view without a picture. */
function clear() {
  state.requests.abort();
  state.source = null;
  $("answer").hidden = true;
  $("answer").ariaBusy = null;
  announce("");
  $("picker").classList.remove("compact");
  document.title = "fc7";
  markSelected(null);
  loadSamples();
}

$("ask").onclick = ({ target }) => {
  const tile = target.closest("button.tile");
  if (tile) searchOn(tile.dataset.key);
};
for (const type of ["pointerover", "pointerleave", "focusin", "focusout"]) {
  $("neighbours").addEventListener(type, ({ target }) => {
    const key = type === "focusout" ? null : target.closest("button.tile")?.dataset.key;
    const beside = $("beside");
    const shown = !beside.hidden && beside.dataset.key === key;
    beside.hidden = !key;
    if (!key || shown) return;
    beside.dataset.key = key;
    showThumbnail(beside, key);
  });
}
$("clear-strip").onclick = () => {
  clearStrip();
  go("");
  $("choose").focus();
};
$("mode").onchange = (event) => {
  strip.mode = event.target.value;
  if (currentView() === "ask") route();
};

export const ask = {
  show() {
    const entry = currentEntry();
    if (entry) return show(entry);
    const fragment = location.hash.slice(1);
    if (!fragment) return clear();
    try {
      return choose({ source: { key: decodeURIComponent(fragment) }, trail: [] }, true);
    } catch {
      return clear(); // not a key: an edited address with a stray %
    }
  },
  hide: state.requests.abort,
  /** Nothing that was loaded with another key or from another state of the server stays. */
  forget() {
    $("sample-list").replaceChildren();
    retryFailed();
  },
  /** Handle a key press; return whether it did something. */
  key(event) {
    if (event.key === "Escape" && state.source !== null) {
      go("");
      $("choose").focus();
      return true;
    }
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    return step !== undefined && neighbourOf(step);
  },
};
