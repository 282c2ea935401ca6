/** What can be done with selected pictures: set a label, delete. */

import { announce, button, confirmed, el } from "../common/dom.js";
import { plural } from "../common/format.js";
import { asProblem, showProblem } from "../common/notices.js";
import { imagePath, request } from "../common/server.js";

const AT_ONCE = 4;

/** Run `work` for each item, some at a time. Stops at the first problem; returns the items that are done. */
async function forEach(items, work, progress) {
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

const patch = ({ key }, label) => request(imagePath(key), { method: "PATCH", json: { metadata: { label } } });

/**
 * Return the bar for the selected pictures. `selected()` returns them; `clear` ends the selection; `labelled` and
 * `deleted` are told what has changed; `labels()` returns known labels.
 */
export function actionBar({ selected, clear, labelled, deleted, labels }) {
  const text = el("span", { className: "selected-count", role: "status" });
  const status = el("span", { className: "help" });
  const label = el("input", { placeholder: "label", ariaLabel: "Label of the selected pictures", required: true, maxLength: 200 });
  const list = el("datalist", { id: "known-labels" });
  label.setAttribute("list", list.id);
  const form = el("form", { className: "row" }, label, list, el("button", { className: "small", textContent: "Set label" }));
  const deleteButton = button("Delete", () => remove(), { className: "small danger" });
  const bar = el("div", { className: "action-bar", hidden: true, role: "region", ariaLabel: "Selected pictures" },
    text, form, deleteButton, button("Clear selection", () => clear(), { className: "small quiet" }), status);
  const notice = el("p", { className: "undo", hidden: true });
  let hide = 0;

  function undoable(words, undo) {
    clearTimeout(hide);
    notice.replaceChildren(el("span", { textContent: words }), button("Undo", undo, { className: "small" }));
    notice.hidden = false;
    announce(words);
    hide = setTimeout(() => { notice.hidden = true; }, 20_000);
  }

  async function run(items, work, verb) {
    bar.inert = true;
    const result = await forEach(items, work, (n) => { status.textContent = `${verb} ${n} of ${items.length}`; });
    bar.inert = false;
    status.textContent = "";
    return result;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const value = label.value.trim();
    if (!value) return;
    const before = new Map(selected().map((item) => [item.key, item.metadata.label ?? null]));
    const { done, failed } = await run(selected(), (item) => patch(item, value), "Labeling");
    for (const item of done) item.metadata = { ...item.metadata, label: value };
    labelled(done);
    if (!failed) clear();
    if (!done.length) return;
    undoable(`${plural(done.length, "picture has", "pictures have")} the label ${value}.`, async () => {
      notice.hidden = true;
      const undone = await run(done, (item) => patch(item, before.get(item.key)), "Restoring");
      for (const item of undone.done) item.metadata = { ...item.metadata, label: before.get(item.key) ?? undefined };
      labelled(undone.done);
    });
  });

  async function remove() {
    const items = selected();
    const what = plural(items.length, "picture");
    const sure = await confirmed(`Delete ${what}?`,
      "They are removed from the index for good. The files that they were added from stay where they are.", `Delete ${what}`);
    if (!sure) return;
    const { done, failed } = await run(items, ({ key }) => request(imagePath(key), { method: "DELETE" }), "Deleting");
    deleted(done);
    if (!failed) clear();
    announce(`${plural(done.length, "picture")} deleted.`);
  }

  return {
    nodes: [bar, notice],
    update(size) {
      bar.hidden = size === 0;
      text.textContent = `${size} selected`;
      list.replaceChildren(...labels().map((value) => el("option", { value })));
    },
    remove,
  };
}
