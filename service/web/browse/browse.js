/**
 * The view Browse: all indexed pictures, filtered and sorted.
 *
 * Guarantees: the filter and the order are in the address; going back to the view keeps the place in the grid.
 */

import { $, announce, button, el } from "../common/dom.js";
import { count, plural } from "../common/format.js";
import { handedOver } from "../common/handover.js";
import { asProblem, clearProblems, showProblem } from "../common/notices.js";
import { isReady } from "../common/readiness.js";
import { go } from "../common/router.js";
import { query } from "../common/server.js";
import { actionBar } from "./actions.js";
import { addDropped } from "./drop.js";
import { showDuplicates } from "./duplicates.js";
import { loadFacets, showFacets } from "./facets.js";
import { grid } from "./grid.js";
import { pages } from "./pages.js";
import { suggestions } from "./suggestions.js";
import { conditionsOf, lineOf } from "./where.js";

const NARROW = matchMedia("(max-width: 60rem)");

const state = {
  address: null, // of the pictures that are loaded
  conditions: [], order: "", seed: "",
  list: { items: [], need() {}, stop() {} },
  total: 0,
  facets: [],
  chosen: null, // pictures from the map, instead of all
  removed: [], // [position, picture] of the last deletion
  controller: new AbortController(),
  scroll: 0,
};

const [total, form, where, order, size, whereProblem, panel, facets, pictures, note, empty, duplicates, cells] = [
  "browse-total", "filter", "where", "order", "size", "where-problem", "facet-panel", "facets", "pictures", "browse-note", "browse-empty",
  "near-duplicates", "grid",
].map($);
panel.open = !NARROW.matches;

const view = grid(cells, {
  itemAt: (i) => state.list.items[i],
  need: (n) => state.list.need(n),
  open: ({ key }) => { go(`#${encodeURIComponent(key)}`); scrollTo({ top: 0 }); },
  changed: (selected) => actions.update([...selected.values()]),
});
const actions = actionBar({
  selected: view.selected,
  clear: view.clearSelection,
  labels: () => state.facets.find(({ name }) => name === "label")?.values.map(({ value }) => String(value)) ?? [],
  labelled(items) {
    const changed = new Map(items.map(({ key, metadata }) => [key, metadata]));
    state.list.items = state.list.items.map((item) => // new ones, so that the grid draws them again
      (changed.has(item.key) ? { ...item, metadata: changed.get(item.key), caption: undefined } : item));
    view.draw();
    refreshFacets();
  },
  removed(items) {
    const gone = new Set(items.map(({ key }) => key));
    state.removed = state.list.items.map((item, i) => [i, item]).filter(([, { key }]) => gone.has(key));
    setItems(state.list.items.filter(({ key }) => !gone.has(key)), -items.length);
  },
  restored(items) {
    const back = new Set(items.map(({ key }) => key));
    const all = [...state.list.items];
    const found = state.removed.filter(([, { key }]) => back.has(key)); // none if other pictures are shown by now
    for (const [i, item] of found) all.splice(i, 0, item); // ascending, so that each gets its old position
    setItems(all, found.length);
  },
  deleted: () => refreshFacets(),
});
$("browse").append(...actions.nodes);

function setTotal(n) {
  state.total = n;
  const shown = view.setTotal(n);
  total.textContent = plural(n, "picture");
  if (n && shown < n && cells.clientWidth) total.textContent += ` (the first ${count(shown)} can be shown)`;
  empty.hidden = n > 0;
  cells.hidden = n === 0;
  const text = state.order === "suggested" ? "No picture is left to label." : state.conditions.length ? "No picture matches this filter." : "No pictures are indexed yet. Add some on the page Ask, or index a folder with ";
  empty.replaceChildren(el("p", {}, text, ...(state.conditions.length || state.order === "suggested" ? [] : [el("code", { textContent: "fc7 index build FOLDER" }), "."])),
    state.conditions.length ? button("Show all pictures", () => change({ conditions: [] })) : "");
}

function showNote(text) {
  note.hidden = !text;
  const action = state.chosen ? button("Show all pictures", () => change({ conditions: [] }), { className: "small" })
    : button("Suggest again", load, { className: "small" });
  note.replaceChildren(el("span", { textContent: text }), action);
}

/** Show other pictures instead of the loaded ones, `change` more than before. */
function setItems(items, change) {
  state.list.items.splice(0, state.list.items.length, ...items);
  setTotal(state.total + change);
  view.draw();
}

/** Go to the address of another filter or order. */
function change({ conditions = state.conditions, order: next = state.order, seed = state.seed }) {
  const parameters = { where: conditions, order: next, seed: next === "random" ? seed : "" };
  go(`#/browse${query(parameters)}`);
}

/** Return the pictures that were chosen on the map, as a list like that of pages.js. */
function handed(_, changed) {
  const items = [...state.chosen];
  queueMicrotask(changed); // after the list is returned
  return { items, done: true, need() {}, stop() {}, note: `${plural(items.length, "picture")} chosen on the map.` };
}

async function load() {
  state.controller.abort();
  state.controller = new AbortController();
  const { signal } = state.controller;
  state.list.stop();
  state.removed = [];
  view.reset();
  clearProblems();
  whereProblem.textContent = "";
  const { conditions, order: by, seed } = state;
  const failed = (problem) => {
    if (signal.aborted) return;
    if (problem.status === 422 && conditions.length) {
      whereProblem.textContent = problem.detail;
      setTotal(0);
    } else if (isReady() || problem.status === 401) {
      state.address = null;
      showProblem(problem, load);
    }
  };
  const list = state.chosen ? handed : by === "suggested" ? suggestions : pages;
  showNote("");
  state.list = list({ where: conditions, order: by, seed }, () => {
    if (signal.aborted) return;
    showNote(state.list.note ?? "");
    if (state.list.done) setTotal(state.list.items.length);
    view.draw();
  }, failed);
  total.textContent = "Loading …";
  await actions.settle();
  if (signal.aborted) return;
  const grouped = by === "duplicates";
  pictures.classList.toggle("grouped", grouped);
  duplicates.hidden = !grouped;
  if (grouped) showDuplicates({ where: conditions, changed: refreshFacets, signal });
  else state.list.need(1);
  try {
    await refreshFacets();
    announce(total.textContent);
  } catch (problem) {
    failed(asProblem(problem));
  }
}

/** Load the counts again. The focus stays on the facet that was chosen. */
async function refreshFacets() {
  const { signal } = state.controller;
  const { conditions } = state;
  const found = await loadFacets(conditions, signal);
  if (signal.aborted) return;
  state.facets = found.fields;
  if (state.list.done) setTotal(state.list.items.length);
  else if (state.order !== "suggested") setTotal(found.images - actions.pending());
  const focused = document.activeElement?.dataset?.facet ?? state.focus;
  showFacets(facets, found.fields, conditions, (next, facet) => {
    state.focus = facet;
    change({ conditions: next(state.conditions) });
  });
  panel.hidden = facets.childElementCount === 0 || state.chosen !== null;
  for (const box of facets.querySelectorAll("input")) if (focused && box.dataset.facet === focused) box.focus({ preventScroll: true });
  state.focus = null;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  change({ conditions: conditionsOf(where.value) });
});
where.addEventListener("search", () => where.value === "" && state.conditions.length && change({ conditions: [] })); // its cross
order.addEventListener("change", () => change({ order: order.value, seed: Math.floor(Math.random() * 2 ** 31) }));
size.addEventListener("input", () => view.setSize(Number(size.value)));
NARROW.addEventListener("change", () => { panel.open = !NARROW.matches; });

export const browse = {
  show(path, parameters, entered) {
    $("browse").hidden = false;
    document.title = "Browse – fc7";
    const address = String(parameters);
    const chosen = parameters.get("from") === "map" ? handedOver() : null;
    if (address !== state.address || chosen !== state.chosen) {
      state.address = address;
      state.chosen = chosen;
      state.conditions = parameters.getAll("where");
      state.order = parameters.get("order") ?? "";
      state.seed = parameters.get("seed") ?? "";
      where.value = lineOf(state.conditions);
      order.value = [...order.options].some(({ value }) => value === state.order) ? state.order : "";
      load();
    } else if (entered) {
      view.draw();
      scrollTo({ top: state.scroll });
    }
  },
  hide() {
    actions.settle();
    state.scroll = scrollY;
    $("browse").hidden = true;
  },
  forget() {
    state.address = null;
  },
  drop: (transfer) => addDropped(transfer, load),
  key(event) {
    if (event.key === "Escape" && view.selected().length) view.clearSelection();
    else if (event.key === "Delete" && view.selected().length) actions.remove();
    else if (event.key === "/") where.focus();
    else return false;
    return true;
  },
};
