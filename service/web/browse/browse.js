/**
 * The view Browse: all indexed pictures, filtered and sorted.
 *
 * Guarantees: the filter and the order are in the address; going back to the view keeps the place in the grid.
 */

import { $, announce, button, el } from "../common/dom.js";
import { count, plural } from "../common/format.js";
import { handover } from "../common/handover.js";
import { clearProblems, showLoadProblem } from "../common/notices.js";
import { go, openPicture } from "../common/router.js";
import { query, signals } from "../common/server.js";
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
  list: { items: [], need() {} },
  total: 0, failed: false,
  facets: [],
  chosen: null, // pictures of another view, instead of all
  removed: [], // [position, picture] of the last deletion
  requests: signals(),
  scroll: 0,
};

const [total, where, order, panel, facets, cells] = ["browse-total", "where", "order", "facet-panel", "facets", "grid"].map($);
panel.open = !NARROW.matches;

const keysOf = (items) => new Set(items.map(({ key }) => key));

const view = grid(cells, {
  itemAt: (i) => state.list.items[i],
  need: (n) => state.list.need(n),
  open: ({ key }) => openPicture(key),
  changed: (selected) => actions.update([...selected.values()]),
});
const actions = actionBar({
  selected: view.selected,
  clear: view.clearSelection,
  fields: () => state.facets,
  labelled(items) {
    const changed = new Map(items.map(({ key, metadata }) => [key, metadata]));
    state.list.items = state.list.items.map((item) => // new ones, so that the grid draws them again
      (changed.has(item.key) ? { ...item, metadata: changed.get(item.key), caption: undefined } : item));
    view.draw();
    refreshFacets();
  },
  removed(items) {
    const gone = keysOf(items);
    state.removed = state.list.items.map((item, i) => [i, item]).filter(([, { key }]) => gone.has(key));
    setItems(state.list.items.filter(({ key }) => !gone.has(key)), -items.length);
  },
  restored(items) {
    const back = keysOf(items);
    const all = [...state.list.items];
    const found = state.removed.filter(([, { key }]) => back.has(key)); // none if other pictures are shown by now
    for (const [i, item] of found) all.splice(i, 0, item); // ascending, so that each gets its old position
    setItems(all, found.length);
  },
  deleted: refreshFacets,
});

function setTotal(n) {
  state.total = n;
  const shown = view.setTotal(n);
  total.textContent = plural(n, "picture");
  if (n && shown < n && cells.clientWidth) total.textContent += ` (the first ${count(shown)} can be shown)`;
  $("browse-empty").hidden = n > 0;
  cells.hidden = n === 0 || state.failed;
  const text = state.order === "suggested" ? ["No picture is left to label."] : state.conditions.length ? ["No picture matches this filter."]
    : ["No pictures are indexed yet. Add some on the page Ask, or index a folder with ", el("code", "fc7 index build FOLDER"), "."];
  $("browse-empty").replaceChildren(el("p", ...text), state.conditions.length ? button("Show all pictures", showAll) : "");
}

const showAll = () => change({ conditions: [] });

function showNote(text) {
  $("browse-note").hidden = !text;
  const action = state.chosen ? button("Show all pictures", showAll, "small") : button("Suggest again", load, "small");
  $("browse-note").replaceChildren(el("span", text), action);
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

/** Return the pictures that were handed over, as a list like that of pages.js. */
function handed(_, changed) {
  const items = [...state.chosen];
  queueMicrotask(changed); // after the list is returned
  return { items, done: true, need() {}, note: `${plural(items.length, "picture")} chosen ${handover.where}.` };
}

async function load() {
  const signal = state.requests.next();
  Object.assign(state, { removed: [], failed: false });
  view.reset();
  clearProblems();
  $("where-problem").textContent = "";
  const { conditions, order: by, seed } = state;
  const failed = (problem) => {
    if (signal.aborted) return;
    if (problem.status === 422 && conditions.length) {
      $("where-problem").textContent = problem.detail;
      setTotal(0);
    } else {
      Object.assign(state, { address: null, failed: true });
      cells.hidden = true; // its pictures would seem to be loading
      showLoadProblem(problem, load);
    }
  };
  const list = state.chosen ? handed : by === "suggested" ? suggestions : pages;
  showNote("");
  state.list = list({ where: conditions, order: by, seed, signal }, () => {
    if (signal.aborted) return;
    showNote(state.list.note ?? "");
    if (state.list.done) setTotal(state.list.items.length);
    view.draw();
  }, failed);
  total.textContent = "Loading …";
  await actions.settle();
  if (signal.aborted) return;
  const grouped = by === "duplicates";
  $("pictures").classList.toggle("grouped", grouped);
  $("near-duplicates").hidden = !grouped;
  if (grouped) showDuplicates({ where: conditions, changed: refreshFacets, signal });
  else state.list.need(1);
  try {
    await refreshFacets();
    announce(total.textContent);
  } catch (problem) {
    failed(problem);
  }
}

/** Load the counts again. The focus stays on the facet that was chosen. */
async function refreshFacets() {
  const signal = state.requests.current();
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
  if (focused) facets.querySelector(`[data-facet="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  state.focus = null;
}

$("filter").onsubmit = (event) => {
  event.preventDefault();
  change({ conditions: conditionsOf(where.value) });
};
where.addEventListener("search", () => where.value === "" && state.conditions.length && showAll()); // its cross
order.onchange = () => change({ order: order.value, seed: Math.floor(Math.random() * 2 ** 31) });
$("size").oninput = ({ target }) => view.setSize(Number(target.value));
NARROW.addEventListener("change", () => { panel.open = !NARROW.matches; });

export const browse = {
  show(path, parameters, entered) {
    const address = String(parameters);
    const chosen = parameters.get("from") === "map" ? handover.chosen : null;
    if (address !== state.address || chosen !== state.chosen) {
      Object.assign(state, {
        address, chosen, conditions: parameters.getAll("where"), order: parameters.get("order") ?? "", seed: parameters.get("seed") ?? "",
      });
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
  },
  forget: () => { state.address = null; },
  drop: (transfer) => addDropped(transfer, load),
  key(event) {
    const any = view.selected().length > 0;
    if (event.key === "Escape" && any) view.clearSelection();
    else if (event.key === "Delete" && any) actions.remove();
    else if (event.key === "/") where.focus();
    else return false;
    return true;
  },
};
