/**
 * What can be done with selected pictures: set a label, delete. Both can be undone for a while.
 *
 * Guarantees: pictures are deleted on the server only when they can no longer be brought back, at the latest when the
 * page is left. If the browser crashes before, they stay.
 */

import { announce, button, el } from "../common/dom.js";
import { count, plural } from "../common/format.js";
import { asProblem, showProblem } from "../common/notices.js";
import { imagePath, request } from "../common/server.js";

const AT_ONCE = 4; // deletions
const KEYS = 1000; // of a request that changes metadata; the API's limit
const UNDO_MS = 15_000;

/** Run `work` for each item, some at a time. Stops at the first problem; returns the items that are done. */
export async function forEach(items, work, progress) {
  const waiting = [...items];
  const done = [];
  let problem = null;
  const worker = async () => {
    while (waiting.length && !problem) {
      const item = waiting.shift();
      try {
        await work(item);
        done.push(item);
        progress(done.length);
      } catch (error) {
        problem ??= asProblem(error);
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  if (problem) showProblem(problem);
  return { done, failed: problem !== null };
}

/** Set a label, or remove it (null); return the items whose label is set. */
async function setLabel(items, label) {
  const done = [];
  try {
    for (let i = 0; i < items.length; i += KEYS) {
      const part = items.slice(i, i + KEYS);
      await request("v1/images", { method: "PATCH", json: { keys: part.map(({ key }) => key), metadata: { label } } });
      for (const item of part) item.metadata = { ...item.metadata, label: label ?? undefined };
      done.push(...part);
    }
  } catch (error) {
    showProblem(error);
  }
  return done;
}

/** Return the pictures whose deletion can still be undone. `now` deletes them. */
function pendingDeletion({ restored, changed, status }) {
  const state = { items: [], timer: 0 };
  const take = () => {
    clearTimeout(state.timer);
    return state.items.splice(0);
  };
  async function now() {
    const items = take();
    if (!items.length) return;
    const { done } = await forEach(items, ({ key }) => request(imagePath(key), { method: "DELETE" }),
      (n) => status(`Deleting ${n} of ${items.length}`));
    status("");
    if (done.length < items.length) restored(items.filter((item) => !done.includes(item)));
    changed();
  }
  addEventListener("pagehide", () => {
    for (const { key } of take()) request(imagePath(key), { method: "DELETE", keepalive: true }).catch(() => {});
  });
  return {
    now,
    add(items) {
      state.items.push(...items);
      state.timer = setTimeout(now, UNDO_MS);
    },
    undo: () => restored(take()),
    size: () => state.items.length,
  };
}

/**
 * Return the bar for the selected pictures. `selected()` returns them; `clear` ends the selection; `labelled`, `removed`
 * and `restored` are told which pictures changed; `deleted` that the server has deleted some; `labels()` returns known
 * labels.
 */
export function actionBar({ selected, clear, labelled, removed, restored, deleted, labels }) {
  const text = el("span", { className: "selected-count", role: "status" });
  const status = el("span", { className: "help", role: "status" });
  const label = el("input", { placeholder: "label", ariaLabel: "Label of the selected pictures", required: true, maxLength: 200, autocomplete: "off" });
  const list = el("datalist", { id: "known-labels" });
  label.setAttribute("list", list.id);
  const form = el("form", { className: "row" }, label, list, el("button", { className: "small", textContent: "Set label" }));
  const bar = el("div", { className: "action-bar", hidden: true, role: "region", ariaLabel: "Selected pictures" },
    text, form, button("Delete", () => remove(), { className: "small danger" }),
    button("Clear selection", () => clear(), { className: "small quiet" }));
  const notice = el("div", { className: "undo", hidden: true, role: "region", ariaLabel: "Last change" });
  const pending = pendingDeletion({ restored, changed: deleted, status: (words) => { status.textContent = words; } });
  let hide = 0;

  function undoable(words, undo) {
    clearTimeout(hide);
    notice.replaceChildren(el("span", { textContent: words }), undo ? button("Undo", () => {
      notice.hidden = true;
      undo();
    }, { className: "small" }) : "", status);
    notice.hidden = false;
    announce(words);
    hide = setTimeout(() => { notice.hidden = true; }, UNDO_MS);
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const value = label.value.trim();
    if (!value) return;
    const items = selected();
    const before = Map.groupBy(items, ({ metadata }) => metadata.label ?? null);
    bar.inert = true;
    const done = await setLabel(items, value);
    bar.inert = false;
    labelled(done);
    if (done.length === items.length) clear();
    if (!done.length) return;
    undoable(`${plural(done.length, "picture has", "pictures have")} the label ${value}.`, async () => {
      for (const [old, group] of before) labelled(await setLabel(group.filter((item) => done.includes(item)), old));
    });
  });

  async function remove() {
    const items = selected();
    await pending.now(); // those of an earlier deletion
    removed(items);
    clear();
    pending.add(items);
    undoable(`${plural(items.length, "picture")} deleted.`, pending.undo);
  }

  return {
    nodes: [bar, notice],
    update(items) {
      bar.hidden = items.length === 0;
      text.textContent = `${count(items.length)} selected`;
      const proposed = new Set(items.map((item) => item.proposed ?? ""));
      if (proposed.size === 1 && !proposed.has("")) [label.value] = proposed;
      list.replaceChildren(...labels().map((value) => el("option", { value })));
    },
    remove,
    /** Return how many deletions can still be undone. The server counts these pictures. */
    pending: pending.size,
    /** Complete a deletion that could still be undone. */
    async settle() {
      notice.hidden = true;
      await pending.now();
    },
  };
}
