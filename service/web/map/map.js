/** The view Map: all pictures in a plane, similar ones near each other. */

import { $, announce, button, cutName, el, options } from "../common/dom.js";
import { count, plural } from "../common/format.js";
import { handover } from "../common/handover.js";
import { clearProblems, showLoadProblem, showProblem } from "../common/notices.js";
import { go, openPicture } from "../common/router.js";
import { query, request, requestJson, signals } from "../common/server.js";
import { thumbnail } from "../common/thumbnails.js";
import { toggle } from "../browse/where.js";
import { plot } from "./plot.js";

// Of similar lightness, so that each is visible on light and dark paper; the last one is for all other labels.
const COLORS = ["#3a7fc1", "#d9742b", "#3d9a50", "#c8423f", "#8c66b5", "#95704f", "#d06aa9", "#8a8f2c", "#2fa2ad", "#5560c9", "#b08a1e", "#5f8f7b"];
const OTHER = "#8a867d";

const state = { loaded: "", where: [], job: null, map: null, requests: signals(), chosen: [], field: "label" };

const [total, field, better, canvas, card, chosen] = ["total", "field", "better", "canvas", "card", "chosen"].map((id) => $(`map-${id}`));
const view = plot(canvas, {
  pointed: showCard,
  opened: (i) => openPicture(state.map.keys[i]),
  encircled: showChosen,
});
[() => view.zoom(true), () => view.zoom(false), () => view.fit()].forEach((work, i) => { $("map-zoom").children[i].onclick = work; });
$("map-tools").onchange = ({ target }) => view.set({ tool: target.value });
better.onclick = compute;

async function load() {
  const signal = state.requests.next();
  clearProblems();
  total.textContent = "Loading …";
  try {
    const [map, fields] = await Promise.all([
      requestJson(`v1/index/map${query({ field: state.field, where: state.where })}`, { signal }),
      requestJson(`v1/index/fields${query({ limit: 1 })}`, { signal }),
    ]);
    if (signal.aborted) return;
    const names = new Set(["label", ...fields.fields.map(({ name }) => name)]);
    field.replaceChildren(...options([...names]));
    field.value = state.field;
    state.map = map;
    show(map);
  } catch (problem) {
    if (signal.aborted) return;
    state.loaded = "";
    total.textContent = "No map";
    showLoadProblem(problem, load);
  }
}

function show(map) {
  const { keys, x, y, labels, label, images, method, missing, next_cursor: next } = map;
  $("map-empty").hidden = images > 0;
  $("map-columns").hidden = images === 0;
  total.textContent = plural(images, "picture");
  const notes = [
    images > 0 && (method === "pca" ? "Similar pictures are near each other, roughly: this is the quick map."
      : "Similar pictures are near each other. Distances between groups have no meaning."),
    missing > 0 && `${plural(missing, "picture is", "pictures are")} not placed yet.`,
    next && `The map shows ${count(keys.length)} of them.`,
  ];
  $("map-status").replaceChildren(notes.filter(Boolean).join(" "), ...(missing > 0 ? [" ", button("Place more", load, "link")] : ["\u00a0"]));
  better.hidden = images === 0;
  const counts = labels.map(() => 0);
  for (const each of label) if (each !== null) counts[each] += 1;
  const order = labels.map((_, i) => i).sort((a, b) => counts[b] - counts[a]);
  const colorOf = labels.map((_, i) => Math.min(order.indexOf(i), COLORS.length));
  const color = label.map((each) => (each === null ? COLORS.length : colorOf[each]));
  view.set({ points: { x, y, keys, color }, colors: [...COLORS, OTHER], chosen: new Set(), dimmed: null, pin: pinOf(map) });
  showChosen([]);
  view.fit();
  describe();
  const rest = order.slice(COLORS.length);
  const unlabelled = label.filter((each) => each === null).length;
  $("map-legend").replaceChildren(
    ...order.slice(0, COLORS.length).map((i, rank) => entry(labels[i], counts[i], COLORS[rank], rank, toggle([], state.field, labels[i]))),
    rest.length ? entry(`${count(rest.length)} other values`, rest.reduce((sum, i) => sum + counts[i], 0), OTHER, COLORS.length) : "",
    unlabelled ? entry(`without ${state.field}`, unlabelled, OTHER, COLORS.length) : "");
}

/** Tell screen readers what the canvas shows. */
function describe() {
  const pin = pinOf(state.map) ? `, with a pin at ${handover.asked.name}` : "";
  canvas.ariaLabel = `Map of ${plural(state.map.images, "picture")}${pin}. The list of labels has the same pictures. `
    + "Arrow keys move, plus and minus zoom, 0 shows all.";
}

/** An entry of the legend. The pointer or focus on it highlights its points; it opens its pictures in Browse. */
function entry(name, images, color, rank, where = null) {
  const text = [el("span.swatch", { ariaHidden: "true", style: `background: ${color}` }), el("span.value", name), el("span.count", count(images))];
  const node = where ? el("a", { href: `#/browse${query({ where })}` }, ...text) : el("span", ...text);
  for (const on of ["pointerenter", "focus"]) node.addEventListener(on, () => view.set({ dimmed: rank }));
  for (const off of ["pointerleave", "blur"]) node.addEventListener(off, () => view.set({ dimmed: null }));
  return el("li", node);
}

/** The picture of the last question: at its own place if it is indexed, otherwise between the pictures nearest to it. */
function pinOf({ keys, x, y }) {
  const near = new Set(handover.asked?.keys ?? []);
  const found = [...keys.keys()].filter((i) => near.has(keys[i]));
  if (!found.length) return null;
  return [x, y].map((values) => found.reduce((sum, i) => sum + values[i], 0) / found.length);
}

function showCard(i) {
  card.hidden = i === null;
  if (i === null) return;
  const { keys, labels, label } = state.map;
  const [x, y] = view.screen(i);
  card.style.left = `${Math.min(x + 14, canvas.clientWidth - 150)}px`;
  card.style.top = `${Math.min(y + 14, canvas.clientHeight - 190)}px`;
  if (card.dataset.key === keys[i]) return;
  card.dataset.key = keys[i];
  card.replaceChildren(thumbnail(keys[i]), el("span", label[i] === null ? "" : labels[label[i]]), cutName(keys[i]));
}

function showChosen(indices) {
  state.chosen = indices;
  chosen.hidden = indices.length === 0;
  chosen.firstElementChild.textContent = `${count(indices.length)} chosen`;
  if (indices.length) announce(`${plural(indices.length, "picture")} chosen.`);
}

$("map-clear").onclick = () => view.choose([]);
$("map-browse").onclick = () => {
  const { keys, labels, label } = state.map;
  handover.chosen = state.chosen.map((i) => ({
    key: keys[i], stored: true, partial: true,
    metadata: state.field === "label" && label[i] !== null ? { label: labels[label[i]] } : {},
  }));
  handover.where = "on the map";
  go("#/browse?from=map");
};

async function compute() {
  better.disabled = true;
  try {
    await request("v1/jobs?kind=map", { method: "POST", json: {} });
    go("#/jobs");
  } catch (problem) {
    showProblem(problem);
  } finally {
    better.disabled = false;
  }
}

field.onchange = () => {
  state.field = field.value;
  load();
};

export const map = {
  show(path, parameters) {
    if (state.loaded !== location.hash || state.job !== handover.mapJob) {
      Object.assign(state, { loaded: location.hash, job: handover.mapJob, where: parameters.getAll("where") });
      load();
    } else if (state.map) {
      view.set({ pin: pinOf(state.map) });
      describe();
    }
  },
  hide() {
    state.requests.abort();
    card.hidden = true;
    if (total.textContent === "Loading …") state.loaded = "";
  },
  forget: () => { state.loaded = ""; },
  key(event) {
    if (event.key !== "Escape" || !state.chosen.length) return false;
    view.choose([]);
    return true;
  },
};
