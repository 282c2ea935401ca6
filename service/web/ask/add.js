/** Adds a file to the index, with a key and a label. */

import { $, announce, button, el } from "../common/dom.js";
import { asProblem } from "../common/notices.js";
import { Problem, imagePath, requestJson } from "../common/server.js";

/** Offer to add the file of `source`; an indexed image is there already. */
export function showAdd({ item }, { predictions }) {
  if (!item) return;
  const open = button(item.added ? "Added to the index" : "Add to the index", () => {
    open.replaceWith(form(item, predictions));
    $("add-key").focus();
  }, { className: "small", disabled: Boolean(item.added) });
  $("add").replaceChildren(open);
}

function form(item, predictions) {
  const key = el("input", { id: "add-key", value: item.name, required: true, maxLength: 200, autocomplete: "off", spellcheck: false });
  const label = el("input", { id: "add-label", autocomplete: "off" });
  label.setAttribute("list", "add-labels");
  const labels = el("datalist", { id: "add-labels" }, ...predictions.map(({ label: value }) => el("option", { value })));
  const status = el("p", { className: "help", role: "status" });
  const submit = el("button", { className: "primary small", textContent: "Add" });
  const state = { replace: null }; // the key that the visitor agreed to replace
  const node = el("form", { className: "add" },
    el("label", {}, "Key, its name in the index", key), el("label", {}, "Label (optional)", label), labels,
    el("p", { className: "row" }, submit, button("Cancel", () => showAdd({ item }, { predictions }), { className: "small" })), status);
  key.addEventListener("input", () => { submit.textContent = "Add"; });
  node.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    status.className = "help";
    status.textContent = "Adding …";
    try {
      if (state.replace !== key.value && (await exists(key.value))) {
        state.replace = key.value;
        submit.textContent = "Replace it";
        status.textContent = "The index already has a picture with this key.";
        return;
      }
      const body = new FormData();
      body.append("file", item.file);
      if (label.value.trim()) body.append("metadata", JSON.stringify({ label: label.value.trim() }));
      const { outcome } = await requestJson(imagePath(key.value), { method: "PUT", body });
      item.added = true;
      const words = { added: "Added to the index", replaced: "Replaced in the index", unchanged: "It was in the index already" };
      node.replaceWith(el("p", { className: "help", textContent: `✓ ${words[outcome]} as ${key.value}.` }));
      announce(words[outcome]);
    } catch (error) {
      const problem = asProblem(error);
      status.className = "help alarm";
      status.textContent = `${problem.title}. ${problem.detail}`;
    } finally {
      submit.disabled = false;
    }
  });
  return node;
}

async function exists(key) {
  try {
    await requestJson(imagePath(key));
    return true;
  } catch (problem) {
    if (problem instanceof Problem && problem.status === 404) return false;
    throw problem;
  }
}
