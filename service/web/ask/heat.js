/** The heat map: which parts of a picture speak for its best class. It is computed only if it is switched on. */

import { $, el } from "../common/dom.js";
import { asProblem } from "../common/notices.js";
import { query, request, signals } from "../common/server.js";

const state = { source: null, result: null, requests: signals() };
const maps = new WeakMap(); // result -> address of its heat map

/** Offer the heat map of an answer, and show it if the switch is on. */
export function showHeat(source, result) {
  Object.assign(state, { source, result });
  $("heat-row").hidden = !result.predictions.length || !bodyOf();
  draw();
}

const bodyOf = () => state.source.item?.file ?? state.result.blob;
const say = (text) => { $("heat-status").textContent = text; };

async function draw() {
  const signal = state.requests.next();
  const { result } = state;
  $("frame").querySelector(".heat")?.remove();
  say("");
  const shown = $("heat").checked && !$("heat-row").hidden;
  $("frame").classList.toggle("heated", shown && maps.has(result));
  if (!shown) return;
  const [{ label }] = result.predictions;
  try {
    if (!maps.has(result)) {
      say("Computing …");
      const { name, version } = result.model;
      const response = await request(`v1/explain${query({ class: label, model: `${name}:${version}` })}`, { body: bodyOf(), signal });
      maps.set(result, URL.createObjectURL(await response.blob()));
    }
    if (signal.aborted) return;
    $("frame").classList.add("heated");
    $("frame").append(el("img.heat", { src: maps.get(result), alt: `Heat map of ${label}`, draggable: false }));
    say(`Bright parts speak for ${label}. This is the square that the model sees.`);
  } catch (problem) {
    if (!signal.aborted) say(asProblem(problem).detail);
  }
}

$("heat").onchange = draw;
