/**
 * A grid of any number of pictures, of which only the visible rows are in the document.
 *
 * Guarantees: one tab stop; the arrow keys, Home, End and the page keys move; the active picture is always in the
 * document, as `aria-activedescendant` requires.
 * References: ARIA Authoring Practices, "Listbox" (multiple selection).
 */

import { el } from "../common/dom.js";
import { showThumbnail } from "../common/thumbnails.js";
import { labelOf } from "../ask/sentence.js";
import { rectangle } from "./rectangle.js";

const GAP = 8;
const OVERSCAN = 2; // rows above and below the visible ones
const CAPTION = 22; // height of the label
const CAPTION_FROM = 96; // width of a picture that has room for it
const MAX_HEIGHT = 30e6; // pixels; browsers draw nothing below about 33 million
const THUMBNAILS_EVERY = 80; // milliseconds: those of rows that only pass by are not requested

/** Return a grid in `node`. `itemAt(i)` returns a picture, or undefined while it is not loaded. */
export function grid(node, { itemAt, need, open, changed }) {
  const state = { total: 0, size: 140, active: 0, anchor: 0, selected: new Map(), shown: new Map(), timer: 0, frame: 0 };

  function measure() {
    const width = node.clientWidth;
    const columns = Math.max(2, Math.floor((width + GAP) / (state.size + GAP)));
    const tile = (width - GAP * (columns - 1)) / columns;
    const row = tile + GAP + (tile >= CAPTION_FROM ? CAPTION : 0);
    const rows = Math.min(Math.ceil(state.total / columns), Math.floor(MAX_HEIGHT / row));
    return { columns, tile, row, rows, count: Math.min(state.total, rows * columns) };
  }

  function draw() {
    cancelAnimationFrame(state.frame);
    state.frame = 0;
    if (node.offsetParent === null) return;
    const layout = measure();
    const { columns, row, rows, count } = layout;
    node.style.height = `${Math.max(0, rows * row - GAP)}px`;
    const top = -node.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / row) - OVERSCAN) * columns;
    const last = Math.min(count, (Math.ceil((top + innerHeight) / row) + OVERSCAN) * columns);
    if (last > first) need(last);
    for (const [i, option] of state.shown) {
      if ((i < first || i >= last) && i !== state.active) remove(i, option);
    }
    for (let i = first; i < last; i += 1) place(i, layout);
    if (state.active < count) place(state.active, layout);
    node.setAttribute("aria-activedescendant", state.shown.get(state.active)?.id ?? "");
    state.timer ||= setTimeout(thumbnails, THUMBNAILS_EVERY);
  }

  function remove(i, option) {
    option.querySelector("img")?.removeAttribute("src"); // stops its download
    option.remove();
    state.shown.delete(i);
  }

  function place(i, { columns, tile, row }) {
    const item = itemAt(i);
    const old = state.shown.get(i);
    if (old && old.item !== item) remove(i, old);
    const option = state.shown.get(i) ?? create(i, item);
    option.style.transform = `translate(${(i % columns) * (tile + GAP)}px, ${Math.floor(i / columns) * row}px)`;
    option.style.width = `${tile}px`;
    option.classList.toggle("captioned", tile >= CAPTION_FROM);
    option.classList.toggle("active", i === state.active);
    option.ariaSelected = String(state.selected.has(item?.key));
    option.ariaSetSize = state.total;
  }

  function create(i, item) {
    const label = item && labelOf(item.metadata);
    const option = el("div", {
      id: `indexed-${i}`, className: "option", role: "option", ariaPosInSet: i + 1, item,
      ariaLabel: item ? [item.key, label, item.hint].filter(Boolean).join(", ") : "loading",
      title: item ? [item.key, item.hint].filter(Boolean).join("\n") : "",
      data: { index: i },
    }, el("span", { className: item ? "thumb" : "thumb waiting" }), el("span.check", { ariaHidden: "true" }),
    el("span.caption", label ?? (item?.caption || item?.key) ?? ""));
    option.fresh = item !== undefined;
    // In the order of the pictures, which is also the order for screen readers.
    const next = Math.min(...[...state.shown.keys()].filter((j) => j > i));
    node.insertBefore(option, state.shown.get(next) ?? null);
    state.shown.set(i, option);
    return option;
  }

  function thumbnails() {
    state.timer = 0;
    for (const option of state.shown.values()) {
      if (!option.fresh) continue;
      option.fresh = false;
      showThumbnail(option.firstChild, option.item.key, option.item.stored);
    }
  }

  /** Show the selection. */
  function show() {
    draw();
    changed(state.selected);
  }

  const later = () => { state.frame ||= requestAnimationFrame(draw); };

  /** Make a picture the active one, and scroll it into view. */
  function activate(i) {
    const { columns, row, count } = measure();
    state.active = Math.max(0, Math.min(i, count - 1));
    const top = node.getBoundingClientRect().top + Math.floor(state.active / columns) * row;
    const [above, below] = [parseFloat(getComputedStyle(node).scrollMarginTop), 80]; // the toolbar and the selection bar
    if (top < above) scrollBy({ top: top - above });
    else if (top + row > innerHeight - below) scrollBy({ top: top + row - innerHeight + below });
    draw();
  }

  /** Add a picture to the selection, if it is loaded. */
  function add(i) {
    const item = itemAt(i);
    if (item) state.selected.set(item.key, item);
  }

  function select(i, range = false) {
    if (range) {
      const [from, to] = [Math.min(state.anchor, i), Math.max(state.anchor, i)];
      for (let j = from; j <= to; j += 1) add(j);
    } else {
      if (!state.selected.delete(itemAt(i)?.key)) add(i);
      state.anchor = i;
    }
    show();
  }

  let [before, kept] = [null, []]; // the state before a rectangle was drawn; the pictures that stay selected
  let cells = ""; // inside the rectangle
  const cancel = rectangle(node, {
    started({ ctrlKey, metaKey, shiftKey }) {
      const { selected, active, anchor } = state;
      before = { selected, active, anchor };
      kept = ctrlKey || metaKey || shiftKey ? selected : [];
      cells = "";
    },
    changed([left, right], [top, bottom]) {
      const { columns, tile, row, count } = measure();
      const [first, last] = [Math.floor((left + GAP) / (tile + GAP)), Math.min(Math.ceil(right / (tile + GAP)), columns) - 1];
      const [from, to] = [Math.floor((top + GAP) / row), Math.ceil(bottom / row) - 1];
      const now = [first, last, from, to].join();
      if (now === cells && itemAt(Math.min(to * columns + last, count - 1))) return; // and all of them are loaded
      cells = now;
      state.selected = new Map(kept);
      for (let r = from; r <= to; r += 1) {
        for (let c = first; c <= last; c += 1) add(r * columns + c);
      }
      if (from <= to && first <= last) state.active = state.anchor = Math.min(from * columns + first, count - 1);
      show();
    },
    canceled() {
      Object.assign(state, before);
      show();
    },
  });
  node.onclick = (event) => {
    const option = event.target.closest(".option");
    if (!option?.item) return;
    const i = Number(option.dataset.index);
    state.active = i;
    if (event.shiftKey) select(i, true);
    else if (state.selected.size || event.ctrlKey || event.metaKey || event.target.closest(".check")) select(i);
    else open(option.item);
  };
  node.onmousedown = ({ shiftKey }) => !shiftKey; // no selection of text
  node.onkeydown = (event) => {
    const { columns, row } = measure();
    const page = Math.max(1, Math.floor(innerHeight / row) - 1) * columns;
    const step = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
      Home: -Infinity, End: Infinity,
    }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (step !== undefined) {
      const target = state.active + step;
      // Below the last row there is nothing, but the last, shorter row can be reached from every column.
      if (target >= 0 || step === -Infinity || step === -1) activate(target);
      if (event.shiftKey) select(state.active, true);
    } else if (event.key === " ") select(state.active, event.shiftKey);
    else if (event.key === "Enter" && itemAt(state.active)) open(itemAt(state.active));
    else return;
    event.preventDefault();
  };
  addEventListener("scroll", later, { passive: true });
  new ResizeObserver(later).observe(node);

  return {
    draw,
    setTotal(total) { state.total = total; later(); return measure().count; },
    setSize(size) { state.size = size; later(); },
    selected: () => [...state.selected.values()],
    clearSelection() { state.selected.clear(); show(); },
    /** Forget everything that is shown, before other pictures are shown. */
    reset() {
      cancel();
      for (const [i, option] of [...state.shown]) remove(i, option);
      Object.assign(state, { active: 0, anchor: 0 });
      state.selected.clear();
      changed(state.selected);
    },
  };
}
