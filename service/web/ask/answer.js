/** Shows the answer about a picture: the sentence, the classes, the neighbours and the times. */

import { $, cutName, el, fill } from "../common/dom.js";
import { distanceText, fileSize, milliseconds, percent } from "../common/format.js";
import { showModelName } from "../common/header.js";
import { showProblem } from "../common/notices.js";
import { tile } from "../common/thumbnails.js";
import { showAdd } from "./add.js";
import { showCopy } from "./copy.js";
import { showHeat } from "./heat.js";
import { askAllClasses } from "./results.js";
import { labelOf, remark, sentence } from "./sentence.js";

const CLASSES = 5; // the server's default, and the number in figure 4 of the 2012 paper

const state = { shown: 6, source: null, result: null };

/** Show the name of the picture before its answer has arrived, and the picture itself if it is a file. */
export function showName(name, { item }) {
  showCaption(name, item && fileSize(item.file.size));
  $("add").replaceChildren();
  $("heat-row").hidden = true;
  $("frame").classList.remove("heated");
  if (item) showImage(item.url, name);
  else $("frame").replaceChildren(el("p.missing.waiting", "loading"));
}

function showCaption(name, ...facts) {
  const text = facts.filter(Boolean).map((fact) => ` · ${fact}`);
  $("caption").replaceChildren(el("strong", name), ...text);
}

function showImage(url, name, revoke = false) {
  const image = el("img", { alt: `Query image: ${name}`, draggable: false });
  image.onload = () => revoke && URL.revokeObjectURL(url);
  image.onerror = () => {
    if (image.isConnected) showNoImage("This browser cannot display this file.");
  };
  image.src = url;
  $("frame").replaceChildren(image);
}

const showNoImage = (text) => $("frame").replaceChildren(el("p.missing", text));

/** Show or hide what is not the picture. */
export function showParts(shown) {
  for (const part of document.querySelectorAll("#answer :is(.classes, .similar, .details)")) part.hidden = !shown;
}

/** Draw outlines of the answer until it arrives. */
export function showWaiting() {
  showParts(true);
  document.querySelector("#answer .details").hidden = true;
  $("sentence").replaceChildren(el("span.waiting", "Asking the model"));
  $("remark").hidden = true;
  $("all-classes").hidden = true;
  $("scale").textContent = "";
  $("bars").replaceChildren(...Array.from({ length: CLASSES }, () =>
    el("li.waiting", el("span.label", "waiting"), el("div.track"), el("data", "–"))));
  $("neighbours").replaceChildren(...Array.from({ length: state.shown }, () =>
    el("li", el("div.tile", el("span.thumb.waiting")))));
}

/** Show an answer; return its sentence. */
export function showAnswer(source, result) {
  Object.assign(state, { source, result });
  showParts(true);
  showModelName(result.model);
  if (result.record) {
    const { key, width, height, size, metadata } = result.record;
    showCaption(key, labelOf(metadata), `${width} × ${height}`, fileSize(size));
    if (result.blob) showImage(URL.createObjectURL(result.blob), key, true);
    else showNoImage("No thumbnail is stored.");
  }
  showClasses(result.predictions);
  showNeighbours();
  const { decode, queue, run, total } = result.timing;
  const stages = run === undefined ? "" : `decode ${milliseconds(decode)} · queue ${milliseconds(queue)} · run ${milliseconds(run)} · `;
  $("timing").textContent = `${stages}${milliseconds(total)} in total${result.mode ? ` · ${result.mode} search` : ""}`;
  showCopy(source, result);
  showAdd(source, result);
  showHeat(source, result);
  return $("sentence").textContent;
}

function showClasses(predictions) {
  document.querySelector("#answer .classes").classList.toggle("no-classes", predictions.length === 0);
  $("all-classes").hidden = predictions.length < CLASSES;
  $("bars").replaceChildren(...predictions.map(({ label, probability }) => {
    const track = el("div.track", { ariaHidden: "true" }, fill(probability)); // the number has the same information
    return el("li", el("span.label", label), track, el("data", { value: probability }, percent(probability)));
  }));
}

$("all-classes").onclick = async () => {
  const { source, result } = state;
  $("all-classes").disabled = true;
  try {
    const predictions = await askAllClasses(source.item?.file ?? result.blob, result.model);
    if (state.result !== result) return;
    showClasses(predictions);
    $("all-classes").hidden = true;
    $("bars").tabIndex = -1;
    $("bars").focus({ preventScroll: true });
  } catch (problem) {
    showProblem(problem);
  } finally {
    $("all-classes").disabled = false;
  }
};

/** Show the neighbours and the sentence, which counts those that agree. */
function showNeighbours() {
  const { result, shown } = state;
  const [best] = result.predictions;
  const near = result.neighbours.slice(0, shown);
  const scale = Math.max(...near.map(({ distance }) => distance), 0);
  $("sentence").textContent = sentence(result, shown);
  const { text = "", alarm = false } = remark(result, shown) ?? {};
  $("remark").hidden = !text;
  $("remark").textContent = text;
  $("remark").classList.toggle("alarm", alarm);
  $("scale").textContent = near.length ? `nearest first; bars show the distance, 0 to ${distanceText(scale)}` : "";
  const none = el("li.none", "No other pictures are indexed yet.");
  $("neighbours").replaceChildren(...(near.length ? near.map((one) => neighbour(one, best?.label, scale)) : [none]));
}

function neighbour({ key, distance, thumbnail, metadata }, best, scale) {
  const label = labelOf(metadata);
  const agrees = label !== null && label === best;
  const name = [key, `distance ${distanceText(distance)}`, label && `label ${label}`, agrees && "the same as the best class"];
  return tile(key, thumbnail, name.filter(Boolean).join(", "),
    el("span", { className: agrees ? "chip agrees" : label === null ? "chip none" : "chip" }, agrees ? `✓ ${label}` : label ?? "no label"),
    el("span.far", el("span.track", fill(scale && distance / scale)), el("data", { value: distance }, distanceText(distance))),
    cutName(key));
}

/** Show fewer or more neighbours. It needs no request. */
$("counts").onchange = ({ target }) => {
  state.shown = Number(target.value);
  if (state.result) showNeighbours();
};
