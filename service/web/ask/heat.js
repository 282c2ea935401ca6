/** The heat map: which parts of a picture speak for its best class. It is computed only if it is switched on. */

import { $, el } from "../common/dom.js";
import { asProblem } from "../common/notices.js";
import { query, request } from "../common/server.js";

const state = { source: null, result: null, controller: new AbortController() };
const maps = new WeakMap(); // result -> address of its heat map

/** Offer the heat map of an answer, and show it if the switch is on. */
export function showHeat(source, result) {
  state.controller.abort();
  Object.assign(state, { source, result });
  const body = bodyOf();
  $("heat-row").hidden = !result.predictions.length || !body;
  draw();
}

const bodyOf = () => state.source.item?.file ?? state.result.blob;

async function draw() {
  state.controller.abort();
  state.controller = new AbortController();
  const { signal } = state.controller;
  const { result } = state;
  $("frame").querySelector(".heat")?.remove();
  $("heat-status").textContent = "";
  const shown = $("heat").checked && !$("heat-row").hidden;
  $("frame").classList.toggle("heated", shown && maps.has(result));
  if (!shown) return;
  const [{ label }] = result.predictions;
  try {
    if (!maps.has(result)) {
      $("heat-status").textContent = "Computing …";
      const { name, version } = result.model;
      const response = await request(`v1/explain${query({ class: label, model: `${name}:${version}` })}`, { body: bodyOf(), signal });
      maps.set(result, URL.createObjectURL(await response.blob()));
    }
    if (signal.aborted) return;
    $("frame").classList.add("heated");
    $("frame").append(el("img", { className: "heat", src: maps.get(result), alt: `Heat map of ${label}`, draggable: false }));
    $("heat-status").textContent = `Bright parts speak for ${label}. This is the square that the model sees.`;
  } catch (problem) {
    if (!signal.aborted) $("heat-status").textContent = asProblem(problem).detail;
  }
}

$("heat").addEventListener("change", draw);
