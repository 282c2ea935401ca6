/**
 * Requests to the server.
 *
 * Guarantees: only the server of the page is contacted; the API key stays in the session storage of this tab.
 */

import { el } from "./dom.js";
import { fileSize } from "./format.js";

const KEY_ITEM = "fc7.api-key";

/** An error with a title and a detail, in the server's words if it sent any. `status` 0: there was no response. */
export class Problem extends Error {
  constructor(status, title, detail, { key = "", type = "" } = {}) {
    super(title);
    Object.assign(this, { status, title, detail, key, type });
  }
}

export const apiKey = () => sessionStorage.getItem(KEY_ITEM) ?? "";
export const storeApiKey = (key) => sessionStorage.setItem(KEY_ITEM, key);
export const forgetApiKey = () => sessionStorage.removeItem(KEY_ITEM);

/** Return the path of an image. The key is one segment, because a browser would resolve `..` in a key with slashes. */
export const imagePath = (key) => `v1/images/${encodeURIComponent(key)}`;

/** Return the path of a version of a model, below those of the API and the page. */
export const versionPath = ({ name, version }) => `${encodeURIComponent(name)}/${version}`;

export const versionLink = (model) => el("a", { href: `#/model/${versionPath(model)}` }, `${model.name}:${model.version}`);

/** Fetch `path`, with the API key if there is one. Throws Problem, or the error of the aborted signal. */
export async function request(path, { method, body, json, signal, keepalive } = {}) {
  const key = apiKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (json !== undefined) {
    body = JSON.stringify(json);
    headers["Content-Type"] = "application/json";
  } else if (body instanceof Blob) {
    headers["Content-Type"] = body.type || "application/octet-stream";
  }
  let response;
  try {
    response = await fetch(path, { method: method ?? (body ? "POST" : "GET"), body, headers, signal, keepalive });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw await connectionProblem(body);
  }
  if (!response.ok) throw await responseProblem(response, key);
  return response;
}

export const requestJson = async (path, options) => (await request(path, options)).json();

/** Fetch JSON; return it with the time of each stage and the total, in milliseconds. */
export async function requestTimed(path, options) {
  const start = performance.now();
  const response = await request(path, options);
  const answer = await response.json();
  const stages = Object.fromEntries(
    [...(response.headers.get("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
  return { answer, timing: { ...stages, total: performance.now() - start } };
}

/** Download a small file. A plain link would not send the API key. */
export async function saveFile(path, name) {
  const url = URL.createObjectURL(await (await request(path)).blob());
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Return `next()`, which aborts the last signal and returns a new one, `current()`, and `abort()`. */
export function signals() {
  let controller = new AbortController();
  return {
    next() {
      controller.abort();
      controller = new AbortController();
      return controller.signal;
    },
    current: () => controller.signal,
    abort: () => controller.abort(),
  };
}

/** Return a query string. Values that are null or empty are left out; lists are repeated. */
export function query(parameters) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if ((one ?? "") !== "") search.append(name, one);
    }
  }
  return search.size ? `?${search}` : "";
}

/** Explain a failed connection. A server that rejects a large body stops reading, which browsers may report as one. */
async function connectionProblem(body) {
  const alive = body instanceof Blob && (await fetch("livez").then(({ ok }) => ok, () => false));
  return alive
    ? new Problem(0, "The server did not read the whole image",
        `The image has ${fileSize(body.size)}, which may exceed the server's limit. The connection may also have been lost.`)
    : new Problem(0, "The server cannot be reached", "It may have stopped, or the network connection is down.");
}

/** Read a problem document (RFC 9457). Other responses, for example from a proxy, are described by their status. */
async function responseProblem(response, key) {
  const problem = await response.json().catch(() => ({}));
  const title = problem.title || response.statusText || "The server returned an error";
  const detail = typeof problem.detail === "string" ? problem.detail : `It responded with status ${response.status}.`;
  return new Problem(response.status, title, detail, { key, type: String(problem.type ?? "") });
}
