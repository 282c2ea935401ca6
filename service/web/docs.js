/** The page /docs: sends requests with the API key of this tab, and shows the answers. */

import { confirmed, el } from "./common/dom.js";
import { fileSize, milliseconds } from "./common/format.js";
import { apiKey, query, storeApiKey } from "./common/server.js";

const { home } = document.body.dataset; // relative: a proxy may add a prefix
const MOST = 100_000; // characters of an answer to show
const MOST_BYTES = 20_000_000; // of an answer to read
const [keyForm, key, keyStatus] = ["key-form", "key", "key-status"].map((id) => document.getElementById(id));

/** Return the path of the form's request: parameters of the path are encoded, empty ones of the query are left out. */
function pathOf(form) {
  let { path } = form.dataset;
  const parameters = {};
  for (const { name, value, dataset } of form.querySelectorAll("input[data-in]")) {
    if (dataset.in === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (dataset.in === "query") parameters[name] = value;
  }
  return home + path.slice(1) + query(parameters);
}

/** Return what the request sends besides its path: the headers, and the body of the field that is shown. */
function contentOf(form) {
  const headers = {};
  for (const { name, value } of form.querySelectorAll("input[data-in=header]")) {
    if (value) headers[name] = value;
  }
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  const field = form.querySelector("[data-body]:enabled");
  if (field?.dataset.body === "json") return { headers: { ...headers, "Content-Type": "application/json" }, body: field.value };
  if (!field) return { headers };
  if (!field.multiple) return { headers: { ...headers, "Content-Type": "application/octet-stream" }, body: field.files[0] };
  const body = new FormData();
  for (const file of field.files) body.append("file", file, file.name);
  return { headers, body };
}

async function send(form) {
  const { method, ask } = form.dataset;
  const path = pathOf(form);
  if (ask !== undefined && !(await confirmed(`Send ${method} ${path.slice(home.length - 1)}?`,
    "This deletes or changes something on the server.", "Send"))) return;
  const [status, result] = [form.querySelector("[role=status]"), form.querySelector(".result")];
  status.textContent = "Sending …";
  const start = performance.now();
  try {
    const response = await fetch(path, { method, ...contentOf(form) });
    const parts = [await answerOf(response), headersOf(response)];
    status.textContent = `${response.status} ${response.statusText}, ${milliseconds(performance.now() - start)}`;
    if (document.getElementById(`error-${response.status}`)) {
      parts.push(el("p", el("a", { href: `#error-${response.status}` }, `What ${response.status} means`)));
    }
    result.replaceChildren(...parts);
  } catch (error) {
    status.textContent = "";
    result.replaceChildren(el("div.problem", el("strong", "No answer"),
      el("p", `The server cannot be reached, or it closed the connection before it had read the body (${error}).`)));
  }
  result.hidden = false;
}

/** Show the answer as a picture or as text. A large file is not read. */
async function answerOf(response) {
  const size = Number(response.headers.get("Content-Length"));
  const type = response.headers.get("Content-Type") ?? "";
  if (size > MOST_BYTES || type === "application/x-tar") {
    response.body.cancel();
    return el("p", `The answer is a file of ${fileSize(size)} (${type}). Save it with the request above.`);
  }
  const blob = await response.blob();
  return blob.type.startsWith("image/") ? picture(blob) : text(await blob.text(), blob.type);
}

function headersOf({ headers }) {
  return el("details", el("summary", "Headers of the answer"),
    el("pre", { tabIndex: 0 }, [...headers].map(([name, value]) => `${name}: ${value}`).join("\n")));
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
  return el("pre", { tabIndex: 0 }, (rest > 0 ? `${shown.slice(0, MOST)}\n… and ${rest} more characters` : shown) || "The answer is empty.");
}

for (const form of document.querySelectorAll("form.send")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form);
  });
  form.querySelector("select.body")?.addEventListener("change", ({ target }) => {
    for (const field of form.querySelectorAll("[data-body]")) field.hidden = field.disabled = field.dataset.body !== target.value;
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
