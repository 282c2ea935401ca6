/** The page /docs: sends GET requests with the API key of this tab, and shows the answers. */

import { el } from "./common/dom.js";
import { milliseconds } from "./common/format.js";
import { apiKey, query, request, storeApiKey } from "./common/server.js";

const { home } = document.body.dataset; // relative: a proxy may add a prefix
const MOST = 100_000; // characters of an answer to show
const [keyForm, key, keyStatus] = ["key-form", "key", "key-status"].map((id) => document.getElementById(id));

/** Return the path of the form's request: parameters of the path are encoded, empty ones of the query are left out. */
function pathOf(form) {
  let { path } = form.dataset;
  const parameters = {};
  for (const { name, value, dataset } of form.querySelectorAll("input")) {
    if (dataset.in === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (dataset.in === "query") parameters[name] = value;
  }
  return home + path.slice(1) + query(parameters);
}

async function send(form) {
  const [status, result] = [form.querySelector("[role=status]"), form.querySelector(".result")];
  status.textContent = "Sending …";
  const start = performance.now();
  try {
    const response = await request(pathOf(form));
    const blob = await response.blob();
    status.textContent = `${response.status}, ${milliseconds(performance.now() - start)}`;
    result.replaceChildren(blob.type.startsWith("image/") ? picture(blob) : text(await blob.text(), blob.type));
  } catch (problem) {
    const { status: code, title = "The answer could not be displayed", detail = String(problem) } = problem;
    status.textContent = code > 0 ? String(code) : "";
    result.replaceChildren(el("div", { className: "problem" }, el("strong", { textContent: title }), el("p", { textContent: detail })));
  }
  result.hidden = false;
}

function picture(blob) {
  const image = el("img", { alt: "The picture of the answer", src: URL.createObjectURL(blob) });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  return image;
}

function text(body, type) {
  let shown = body;
  if (type.includes("json")) {
    try {
      shown = JSON.stringify(JSON.parse(body), null, 2);
    } catch {
      // Shown as it is: several JSON values, one a line.
    }
  }
  const rest = shown.length - MOST;
  return el("pre", { tabIndex: 0, textContent: (rest > 0 ? `${shown.slice(0, MOST)}\n… and ${rest} more characters` : shown) || "The answer is empty." });
}

for (const form of document.querySelectorAll("form.send")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
}
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  storeApiKey(key.value.trim());
  key.value = "";
  showKey();
});
const showKey = () => { keyStatus.textContent = apiKey() ? "This tab has a key." : "This tab has no key."; };
showKey();

const address = new URL(home, document.baseURI).href.replace(/\/$/, "");
for (const code of document.querySelectorAll("pre.request")) code.textContent = code.textContent.replace("http://localhost:8000", address);
