/**
 * The strip of the visitor's own pictures, each with its best class or its error.
 *
 * Guarantees: every chosen file has an entry; each is uploaded once, at most two at a time, the selected one first.
 */

import { $, el } from "../common/dom.js";
import { roundPercent } from "../common/format.js";
import { asProblem } from "../common/notices.js";
import { askFile } from "./results.js";

const AT_ONCE = 2; // the server decodes and runs several images in parallel; more would only wait in its queue

const state = {
  items: [], // {id, file, name, url, node, result, mode, promise, resolve, reject}
  selected: null,
  waiting: [], // items to ask about
  running: 0,
};

/** mode: the search mode of the answers that are asked for from now on. select(item, replace): shows an item. */
export const strip = { mode: "", select() {} };

/** Append files to the strip and select the first of them. */
export function addFiles(files) {
  const added = [...files].map((file) => {
    const item = { id: `picture-${crypto.getRandomValues(new Uint32Array(1))[0]}`, file, name: file.name || "pasted picture" };
    item.url = URL.createObjectURL(file);
    item.node = entry(item);
    $("strip").append(item.node);
    return item;
  });
  state.items.push(...added);
  strip.select(added[0]);
  for (const item of added) answerOf(item).catch(() => {}); // shown in the strip, and when it is selected
  $("strip-section").hidden = state.items.length < 2;
}

function entry(item) {
  const image = el("img", { src: item.url, alt: "", decoding: "async", draggable: false });
  image.onerror = () => image.replaceWith(el("span.missing", "no preview"));
  return el("li", { id: item.id, role: "option", ariaSelected: "false", title: item.name, onclick: () => strip.select(item) },
    el("span.thumb", image),
    el("span.name", item.name),
    el("span.verdict", "waiting"));
}

/** Return the promise of an item's answer; ask for it if that has not been done in this search mode. */
export function answerOf(item) {
  const { mode } = strip;
  if (!item.promise || item.mode !== mode) {
    item.mode = mode;
    Object.assign(item, Promise.withResolvers());
    item.promise.catch(() => {});
    state.waiting.push(item);
    work();
  }
  return item.promise;
}

/** Forget all failures: the server may be ready now, or another key is in use. */
export function retryFailed() {
  for (const item of state.items) if (item.node.classList.contains("failed")) item.promise = null;
}

async function work() {
  if (state.running >= AT_ONCE || !state.waiting.length) return;
  const i = Math.max(0, state.waiting.indexOf(state.selected));
  const [item] = state.waiting.splice(i, 1);
  const { resolve, reject, mode } = item;
  state.running += 1;
  verdict(item, "asking");
  try {
    const result = await askFile(item.file, mode);
    if (item.mode === mode) item.result = result;
    const [best] = result.predictions;
    const unknown = result.novelty?.unknown ? "unknown; nearest: " : "";
    verdict(item, best ? `${unknown}${best.label}, ${roundPercent(best.probability)}` : "no class");
    resolve(result);
  } catch (error) {
    const problem = asProblem(error);
    verdict(item, problem.title, "failed");
    reject(problem);
  }
  state.running -= 1;
  work();
}

function verdict(item, text, className = "") {
  item.node.querySelector(".verdict").textContent = text;
  Object.assign(item.node, { className, title: `${item.name}: ${text}` });
}

/** Mark the selected item, or none. */
export function markSelected(item) {
  state.selected = item ?? null;
  for (const { node } of state.items) node.ariaSelected = String(node === item?.node);
  const known = state.items.includes(item);
  $("strip").setAttribute("aria-activedescendant", known ? item.id : "");
  if (!known) return;
  const { offsetLeft, offsetWidth } = item.node; // scrollIntoView would also scroll the page
  $("strip").scrollLeft = offsetLeft - ($("strip").clientWidth - offsetWidth) / 2;
}

/** Select the item before or after the selected one; return whether there is one. */
export function neighbourOf(step) {
  if (state.items.length < 2) return false;
  const item = state.items[state.items.indexOf(state.selected) + step];
  if (item) strip.select(item, true);
  return true;
}

export function clearStrip() {
  for (const { url } of state.items) URL.revokeObjectURL(url);
  Object.assign(state, { items: [], waiting: [] });
  $("strip").replaceChildren();
  $("strip-section").hidden = true;
}
