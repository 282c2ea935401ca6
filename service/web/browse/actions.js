/**
 * What can be done with selected pictures: set a label, a tag or another field, and delete. It can be undone for a while.
 *
 * Guarantees: pictures are deleted on the server only when they can no longer be brought back, at the latest when the
 * page is left. If the browser crashes before, they stay.
 */

import { $, announce, button, el, options } from "../common/dom.js";
import { count, plural } from "../common/format.js";
import { showProblem } from "../common/notices.js";
import { imagePath, request } from "../common/server.js";
import { apply, complete, setting, tagging } from "./changes.js";

const AT_ONCE = 4; // deletions
const UNDO_MS = 15_000;

// What the form does: the name of its text, its button, and whether the text may be empty.
const FORMS = {
  label: ["Label of the selected pictures", "Set label"],
  add: ["Tag to add", "Add tag"],
  remove: ["Tag to remove", "Remove tag"],
  field: ["Value, or nothing to remove the field", "Set field"],
};

/** Run `work` for each item, some at a time. Stops at the first problem; returns the items that are done. */
export async function forEach(items, work, progress) {
  const waiting = [...items];
  const done = [];
  const worker = async () => {
    while (waiting.length) {
      const item = waiting.shift();
      await work(item);
      done.push(item);
      progress(done.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, () => worker().catch((problem) => {
    waiting.length = 0;
    showProblem(problem);
  })));
  return done;
}

/** Delete pictures on the server; return those that are deleted. */
export const deleteAll = (items, progress) => forEach(items, ({ key }) => request(imagePath(key), { method: "DELETE" }), progress);

/** Return the pictures whose deletion can still be undone. `now` deletes them. */
function pendingDeletion({ restored, changed, status }) {
  const pending = [];
  let timer = 0;
  const take = () => {
    clearTimeout(timer);
    return pending.splice(0);
  };
  async function now() {
    const items = take();
    if (!items.length) return;
    const done = await deleteAll(items, (n) => status(`Deleting ${n} of ${items.length}`));
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
      pending.push(...items);
      timer = setTimeout(now, UNDO_MS);
    },
    undo: () => restored(take()),
    size: () => pending.length,
  };
}

/** Return a text as a value of a field: as the field's other values, or a number, true or false if it is written like one. */
function valueOf(text, type) {
  if (text === "") return null;
  if (type !== "string" && /^(?:true|false)$/.test(text)) return text === "true";
  return type !== "string" && Number.isFinite(Number(text)) ? Number(text) : text;
}

/**
 * Connect the bar for the selected pictures. `selected()` returns them; `clear` ends the selection; `labelled`, `removed`
 * and `restored` are told which pictures changed; `deleted` that the server has deleted some; `fields()` returns the
 * known fields.
 */
export function actionBar({ selected, clear, labelled, removed, restored, deleted, fields }) {
  const [bar, how, name, value, notice] = ["action-bar", "change-how", "change-name", "change-value", "undo"].map($);
  const status = el("span.help", { role: "status" });
  const pending = pendingDeletion({ restored, changed: deleted, status: (words) => { status.textContent = words; } });
  let hide = 0;

  function undoable(words, undo) {
    clearTimeout(hide);
    notice.replaceChildren(el("span", words), button("Undo", async () => {
      notice.hidden = true;
      await undo();
      announce("Undone.");
    }, "small"), status);
    notice.hidden = false;
    announce(words);
    hide = setTimeout(() => { notice.hidden = true; }, UNDO_MS);
  }

  /** Return the field that the form changes. */
  const fieldName = () => ({ label: "label", field: name.value.trim() }[how.value] ?? "tags");

  function showForm() {
    const [title, action] = FORMS[how.value];
    const any = how.value === "field";
    Object.assign(value, { ariaLabel: title, placeholder: title.split(/\W/)[0].toLowerCase(), required: !any });
    Object.assign(name, { hidden: !any, required: any });
    $("change-submit").textContent = action;
    const known = fields().find((field) => field.name === fieldName());
    $("known-fields").replaceChildren(...options(fields().map((field) => field.name)));
    $("known-values").replaceChildren(...options((known?.values ?? []).map((each) => String(each.value))));
  }

  /** Make a change of items, and show it and its problem. Return the items that are changed. */
  async function make(change, items) {
    const { done, problem } = await apply(change, items);
    if (problem) showProblem(problem);
    labelled(done);
    return done;
  }

  $("change").onsubmit = async (event) => {
    event.preventDefault();
    const [field, text, items] = [fieldName(), value.value.trim(), selected()];
    if (!text && value.required) return;
    const to = how.value === "field" ? valueOf(text, fields().find((known) => known.name === field)?.type) : text;
    const change = field === "tags" && how.value !== "field" ? tagging(text, how.value === "add") : setting(field, to);
    const gone = how.value === "remove" || to === null ? "no longer " : "";
    const what = { label: `the label ${text}`, field: `${field} ${text}`.trim() }[how.value] ?? `the tag ${text}`;
    bar.inert = true;
    try {
      await complete(items);
    } catch (problem) {
      bar.inert = false;
      showProblem(problem);
      return;
    }
    const undo = change.undoOf(items);
    const done = new Set(await make(change, items));
    bar.inert = false;
    if (done.size === items.length) clear();
    if (done.size) {
      undoable(`${plural(done.size, `picture ${gone}has`, `pictures ${gone}have`)} ${what}.`, async () => {
        for (const [back, group] of undo) await make(back, group.filter((item) => done.has(item)));
      });
    }
  };
  how.onchange = name.onchange = showForm;

  async function remove() {
    const items = selected();
    await pending.now(); // those of an earlier deletion
    removed(items);
    clear();
    pending.add(items);
    undoable(`${plural(items.length, "picture")} deleted.`, pending.undo);
  }
  $("delete-selected").onclick = remove;
  $("clear-selection").onclick = clear;

  return {
    update(items) {
      bar.hidden = items.length === 0;
      $("selected-count").textContent = `${count(items.length)} selected`;
      const proposed = new Set(items.map((item) => item.proposed ?? ""));
      if (how.value === "label" && proposed.size === 1 && !proposed.has("")) [value.value] = proposed;
      showForm();
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
