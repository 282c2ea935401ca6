/** Adds a file to the index, with a key and a label. */

import { $, announce, button, el, options } from "../common/dom.js";
import { asProblem } from "../common/notices.js";
import { imagePath, requestJson } from "../common/server.js";

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
  const node = $("add-form").content.firstElementChild.cloneNode(true);
  const [key, label, submit, cancel] = node.elements;
  const status = node.lastElementChild;
  key.value = item.name;
  node.querySelector("datalist").append(...options(predictions.map((each) => each.label)));
  cancel.onclick = () => showAdd({ item }, { predictions });
  const say = (textContent, className = "help") => Object.assign(status, { textContent, className });
  let replace = null; // the key that the visitor agreed to replace
  key.oninput = () => { submit.textContent = "Add"; };
  node.onsubmit = async (event) => {
    event.preventDefault();
    submit.disabled = true;
    say("Adding …");
    try {
      if (replace !== key.value && (await exists(key.value))) {
        replace = key.value;
        submit.textContent = "Replace it";
        say("The index already has a picture with this key.");
        return;
      }
      const body = new FormData();
      body.append("file", item.file);
      if (label.value.trim()) body.append("metadata", JSON.stringify({ label: label.value.trim() }));
      const { outcome } = await requestJson(imagePath(key.value), { method: "PUT", body });
      item.added = true;
      const words = { added: "Added to the index", replaced: "Replaced in the index", unchanged: "It was in the index already" };
      node.replaceWith(el("p.help", `✓ ${words[outcome]} as ${key.value}.`));
      announce(words[outcome]);
    } catch (error) {
      const { title, detail } = asProblem(error);
      say(`${title}. ${detail}`, "help alarm");
    } finally {
      submit.disabled = false;
    }
  };
  return node;
}

const exists = (key) => requestJson(imagePath(key)).then(() => true, (problem) => {
  if (problem.status === 404) return false;
  throw problem;
});
