/**
 * The page: choose a picture, see what it is and what looks like it.
 *
 * Promises: talks to the server that it came from and to nothing else; a later choice wins over an earlier one, whatever
 * order their answers arrive in; each failure is said in words; the API key stays in this tab's session storage.
 * Does not: shrink, turn or convert a picture (the server gets the bytes as they are), or change the index.
 */

const KEY_ITEM = "fc7.api-key";
const CLASSES = 5; // what the server names unless asked for more: as many as the 2012 paper's figure 4
const NEIGHBOURS = 6;
const PAGE = 24;
const READY_POLL_MS = 3000;
const WORTH_A_RETRY = new Set([0, 429, 503, 504]);

const $ = (id) => document.getElementById(id);

const state = {
  selection: null, // {file} or {key}: what is shown
  turn: new AbortController(), // ends when another picture is chosen
  listing: new AbortController(), // ends when the shelf starts again
  cursor: null,
  unready: false,
  kept: new Map(), // history id -> selection, so that Back returns to a dropped file too
};

/** Return a new element with properties set and children appended; strings become text, never markup. */
function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// --- The server ---------------------------------------------------------------------------------------------------

/** What went wrong, in the server's words where it has some. `status` 0: no answer came. */
class Problem extends Error {
  constructor(status, title, detail, key = "") {
    super(title);
    Object.assign(this, { status, title, detail, key });
  }
}

const apiKey = () => sessionStorage.getItem(KEY_ITEM) ?? "";

/** Encoded as one segment: a browser would resolve `..` in a key that kept its slashes. */
const imagePath = (key) => `v1/images/${encodeURIComponent(key)}`;

/** Fetch `path` of this server, with the key if there is one. Throws Problem, or the abort's error. */
async function request(path, { body, signal } = {}) {
  const key = apiKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = body.type || "application/octet-stream";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw await noAnswer(body);
  }
  if (!response.ok) throw await problemOf(response, key);
  return response;
}

const requestJson = async (path, options) => (await request(path, options)).json();

/** A server that refuses a large body stops reading, which browsers may report as a broken connection. */
async function noAnswer(body) {
  const alive = body && (await fetch("livez").then(({ ok }) => ok, () => false));
  return alive
    ? new Problem(0, "The server did not read the whole picture",
        `It has ${fileSize(body.size)}, which may be more than this server takes. The connection may also have dropped.`)
    : new Problem(0, "The server cannot be reached", "It may have stopped, or the network is down.");
}

/** Read a problem document (RFC 9457), or say what is known when something else answered, a proxy for example. */
async function problemOf(response, key) {
  const problem = await response.json().catch(() => ({}));
  const title = problem.title || response.statusText || "The server could not answer";
  const detail = typeof problem.detail === "string" ? problem.detail : `It answered with status ${response.status}.`;
  return new Problem(response.status, title, detail, key);
}

// --- Words and numbers --------------------------------------------------------------------------------------------

const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
const distanceText = (d) => (d === 0 ? "0" : d >= 100 ? d.toFixed(0) : d.toPrecision(3));
const sentence = (text) => text.replace(/^[a-z]+ /, (word) => word[0].toUpperCase() + word.slice(1));
const fileSize = (n) => (n < 1e6 ? `${Math.ceil(n / 1e3)} KB` : `${(n / 1e6).toFixed(1)} MB`);

/** Show a failure once, however many requests met it; a missing key asks for one instead. */
function complain(problem, retry) {
  if (!(problem instanceof Problem)) {
    problem = new Problem(-1, "The answer could not be shown", String(problem));
  }
  if (problem.status === 401) return askForKey(problem.key);
  const same = [...$("problems").children].some((shown) => shown.dataset.says === problem.title + problem.detail);
  if (same) return;
  const notice = el("section", { className: "problem" }, el("h2", { textContent: problem.title }),
    el("p", { textContent: sentence(problem.detail) }));
  notice.dataset.says = problem.title + problem.detail;
  if (WORTH_A_RETRY.has(problem.status)) {
    const again = el("button", { type: "button", textContent: "Try again" });
    again.addEventListener("click", () => {
      notice.remove();
      $("choose").focus(); // the button that had the focus is gone
      retry();
    });
    notice.append(again);
  }
  $("problems").append(notice);
}

/** Ask for a key after a refusal; `refused` is the key that the refused request carried, or nothing. */
function askForKey(refused) {
  if (refused === apiKey()) sessionStorage.removeItem(KEY_ITEM);
  if (apiKey()) return; // the refusal of an older request: another key is being tried
  if (refused) $("key-help").textContent = "The server did not take that key.";
  $("forget-key").hidden = true;
  if (!$("key-form").hidden) return; // several requests are refused at once; one of them moves the focus
  $("key-form").hidden = false;
  $("key").focus();
}

function showModel(model) {
  $("model").hidden = !model;
  $("model-name").textContent = model?.name ?? "";
  $("model-version").textContent = model ? `version ${model.version}` : "";
}

// --- The answer ---------------------------------------------------------------------------------------------------

/** Put a picture of the server's into `frame`; with a key it has to be fetched, since <img> sends none. */
async function paint(frame, url, alt) {
  const missing = () => frame.replaceChildren(el("span", { className: "missing", textContent: "no picture kept" }));
  if (!url) return missing();
  const image = el("img", { alt, draggable: false, decoding: "async" });
  image.addEventListener("error", missing);
  if (apiKey()) {
    try {
      image.src = URL.createObjectURL(await (await request(url)).blob());
    } catch {
      return missing();
    }
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
  } else {
    image.src = url;
  }
  return frame.replaceChildren(image);
}

/** Return a list item with a button that searches from the indexed picture `key`. */
function tile(key, url, alt, ...caption) {
  const thumb = el("span", { className: "thumb" });
  const button = el("button", { type: "button", className: "tile", title: key }, thumb, ...caption);
  button.dataset.key = key;
  button.addEventListener("click", () => choose({ key }, { fromTile: true }));
  paint(thumb, url, alt);
  return el("li", {}, button);
}

/** Show `blob` as the picture asked about, with what a reader can know about it. */
function showPicture(blob, name) {
  const image = el("img", { alt: `The picture asked about: ${name}`, draggable: false });
  const url = URL.createObjectURL(blob);
  image.addEventListener("load", () => URL.revokeObjectURL(url));
  image.addEventListener("error", () => {
    URL.revokeObjectURL(url);
    showNoPicture("This browser cannot show this file.");
  });
  image.src = url;
  $("frame").replaceChildren(image);
}

const showNoPicture = (words) => $("frame").replaceChildren(el("p", { className: "missing", textContent: words }));
const showCaption = (name, ...facts) =>
  $("caption").replaceChildren(el("strong", { textContent: name }), ...facts.filter(Boolean).map((fact) => ` · ${fact}`));

const showRecord = ({ key, width, height, size }) => showCaption(key, `${width} × ${height}`, fileSize(size));

function showClasses({ model, results }) {
  showModel(model);
  $("bars").replaceChildren(...results[0].predictions.map(({ label, probability }) => {
    const fill = el("div", { className: "fill" });
    fill.style.width = `${100 * probability}%`;
    const track = el("div", { className: "track" }, fill);
    track.setAttribute("aria-hidden", "true"); // the figure beside it says the same
    return el("li", {}, el("span", { className: "label", textContent: label }), track,
      el("data", { value: probability, textContent: percent(probability) }));
  }));
}

function showNeighbours({ model, results }) {
  showModel(model);
  const tiles = results[0].neighbours.map(({ key, distance, thumbnail }) => {
    const item = tile(key, thumbnail, "", el("data", { value: distance, textContent: distanceText(distance) }),
      el("span", { className: "key", textContent: key }));
    item.firstChild.setAttribute("aria-label", `${key}, distance ${distanceText(distance)}`);
    return item;
  });
  const none = el("li", { className: "none", textContent: "Nothing else is indexed yet." });
  $("neighbours").replaceChildren(...(tiles.length ? tiles : [none]));
}

/** Draw both lists in outline while their answers are on the way. */
function showWaiting() {
  for (const list of ["bars", "neighbours"]) $(list).closest("section").hidden = false;
  $("bars").replaceChildren(...Array.from({ length: CLASSES }, () =>
    el("li", { className: "waiting" }, el("span", { className: "label", textContent: "waiting" }),
      el("div", { className: "track" }), el("data", { textContent: "–" }))));
  $("neighbours").replaceChildren(...Array.from({ length: NEIGHBOURS }, () =>
    el("li", {}, el("div", { className: "tile" }, el("span", { className: "thumb waiting" })))));
}

/** Say the answer once it is complete: what the live region reads out. */
function speak(classes, neighbours) {
  const best = classes?.results[0].predictions[0];
  const nearest = neighbours?.results[0].neighbours;
  $("spoken").textContent = [
    best && `${best.label}, ${percent(best.probability)}.`,
    nearest?.length &&
      `${nearest.length} similar pictures, the nearest ${nearest[0].key} at distance ${distanceText(nearest[0].distance)}.`,
  ].filter(Boolean).join(" ");
}

/** The requests that answer for a picture: its blob, its facts, its classes and its neighbours, all under way at once. */
function ask({ file, key }, signal) {
  const path = key === undefined ? "" : imagePath(key);
  const thumbnail = async () => (await request(`${path}/thumbnail`, { signal })).blob();
  const picture = file ? Promise.resolve(file) : thumbnail();
  return {
    picture,
    record: file ? Promise.resolve(null) : requestJson(path, { signal }),
    classes: picture.then((body) => requestJson("v1/classify", { body, signal })),
    neighbours: file
      ? requestJson(`v1/search?k=${NEIGHBOURS}`, { body: file, signal })
      : requestJson(`${path}/similar?k=${NEIGHBOURS}`, { signal }),
  };
}

/** Show a selection and its answers; whatever was on the way for an earlier one is dropped. */
async function show(selection) {
  state.turn.abort();
  state.turn = new AbortController();
  state.selection = selection;
  const { signal } = state.turn;
  const name = selection.key ?? (selection.file.name || "pasted picture");
  $("problems").replaceChildren();
  $("spoken").textContent = "";
  $("answer").hidden = false;
  $("answer").setAttribute("aria-busy", "true");
  $("picker").classList.add("compact");
  document.title = `${name} – fc7`;
  markCurrent();
  showCaption(name, selection.file && fileSize(selection.file.size));
  showWaiting();

  const part = async (answer, render, fail) => {
    try {
      const value = await answer;
      if (signal.aborted) return null;
      render(value);
      return value;
    } catch (problem) {
      if (signal.aborted) return null;
      fail();
      complain(problem, () => show(selection));
      return null;
    }
  };
  const none = (list) => () => { $(list).closest("section").hidden = true; };
  const parts = ask(selection, signal);
  const [, , classes, neighbours] = await Promise.all([
    part(parts.picture, (blob) => showPicture(blob, name), () => showNoPicture("There is no picture to show.")),
    part(parts.record, (record) => record && showRecord(record), () => {}),
    part(parts.classes, showClasses, none("bars")),
    part(parts.neighbours, showNeighbours, none("neighbours")),
  ]);
  if (signal.aborted) return;
  $("answer").removeAttribute("aria-busy");
  speak(classes, neighbours);
}

/** Return to the invitation. */
function clear() {
  state.turn.abort();
  state.selection = null;
  $("answer").hidden = true;
  $("problems").replaceChildren();
  $("spoken").textContent = "";
  $("picker").classList.remove("compact");
  document.title = "fc7";
  markCurrent();
}

// --- Choosing -----------------------------------------------------------------------------------------------------

/** Show a selection as a new step of the browser's history. */
function choose(selection, { fromTile = false } = {}) {
  const id = `${performance.timeOrigin}/${state.kept.size}`; // unlike a counter alone, not met again after a reload
  state.kept.set(id, selection);
  const fragment = selection.key === undefined ? "" : `#${encodeURIComponent(selection.key)}`;
  history.pushState({ id }, "", location.pathname + location.search + fragment);
  show(selection);
  if (fromTile) {
    $("caption").focus({ preventScroll: true });
    scrollTo({ top: 0 });
  }
}

/** Take the first file of a drop, a paste or the chooser; nothing is said for text pasted elsewhere. */
function takeFiles(files) {
  if (files.length) choose({ file: files[0] });
}

/** Show what the address and the history say: on load, on Back, on an edited address. */
function restore() {
  const kept = state.kept.get(history.state?.id);
  const fragment = location.hash.slice(1);
  if (kept) return show(kept);
  if (!fragment) return clear();
  try {
    return show({ key: decodeURIComponent(fragment) });
  } catch {
    return clear(); // not a key: a stray % in an edited address
  }
}

function markCurrent() {
  for (const button of $("shelf").querySelectorAll(".tile")) {
    if (button.dataset.key === state.selection?.key) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

// --- The shelf of indexed pictures, the model, readiness ----------------------------------------------------------

/** Append the next page of indexed pictures. */
async function loadShelf() {
  const { signal } = state.listing;
  const moveFocus = document.activeElement === $("more"); // a disabled button loses it
  $("more").disabled = true;
  try {
    const cursor = state.cursor === null ? "" : `&cursor=${encodeURIComponent(state.cursor)}`;
    const page = await requestJson(`v1/images?limit=${PAGE}${cursor}`, { signal });
    if (signal.aborted) return;
    const tiles = page.images.map(({ key, thumbnail }) => tile(key, thumbnail, key));
    $("shelf").append(...tiles);
    state.cursor = page.next_cursor ?? null;
    $("indexed").hidden = false;
    $("shelf-empty").hidden = $("shelf").childElementCount > 0;
    $("more").hidden = state.cursor === null;
    if (moveFocus) tiles[0]?.firstChild.focus({ preventScroll: true });
    markCurrent();
  } catch (problem) {
    if (!signal.aborted && !state.unready) complain(problem, loadShelf);
  } finally {
    if (!signal.aborted) $("more").disabled = false;
  }
}

/** Fetch anew what the page shows before anything is chosen. */
function loadServer() {
  state.listing.abort();
  state.listing = new AbortController();
  state.cursor = null;
  $("shelf").replaceChildren();
  $("forget-key").hidden = !apiKey();
  loadShelf();
  requestJson("v1/models").then(({ models }) => showModel(models.find(({ serving }) => serving)), () => {});
}

/** Fetch anew all that depends on the server's state or on the key. */
function refresh() {
  loadServer();
  if (state.selection) show(state.selection);
}

/** Ask whether the server is ready; while it is not, say why and ask again. */
async function watchReadiness() {
  const response = await fetch("readyz").catch(() => null);
  const unready = response === null ? state.unready : !response.ok; // silence is no news: the requests to come will tell
  if (unready && response) {
    const body = await response.json().catch(() => ({}));
    const reasons = body.reasons ?? [body.detail ?? "It gives no reason."];
    $("not-ready").replaceChildren(el("h2", { textContent: "The server is not ready yet" }),
      ...reasons.map((reason) => el("p", { textContent: sentence(reason) })));
  }
  $("not-ready").hidden = !unready;
  if (state.unready && !unready) refresh();
  state.unready = unready;
  if (unready) setTimeout(watchReadiness, READY_POLL_MS);
}

// --- Wiring -------------------------------------------------------------------------------------------------------

$("invitation").addEventListener("click", ({ target }) => {
  // All of the large invitation is a target for the mouse; the keyboard has the button in it.
  if (target.closest("button") || !$("picker").classList.contains("compact")) $("file").click();
});
$("file").addEventListener("change", (event) => {
  takeFiles(event.target.files);
  event.target.value = ""; // the same file can be chosen again
});
$("more").addEventListener("click", loadShelf);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) { // others cannot travel in a header
    $("key-help").textContent = "A key has only letters, digits and signs, without spaces.";
    return;
  }
  sessionStorage.setItem(KEY_ITEM, key);
  $("key").value = "";
  $("key-form").hidden = true;
  $("choose").focus();
  refresh();
});
$("forget-key").addEventListener("click", () => {
  sessionStorage.removeItem(KEY_ITEM);
  location.reload();
});

document.addEventListener("paste", (event) => takeFiles(event.clipboardData?.files ?? []));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !state.selection) return;
  history.pushState(null, "", location.pathname + location.search);
  clear();
  $("choose").focus();
});
addEventListener("popstate", restore);

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // also for what is not a file: the browser would leave the page
  event.dataTransfer.dropEffect = carriesFiles(event) ? "copy" : "none";
  $("drop").hidden = !carriesFiles(event);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  if (event.dataTransfer.files.length) takeFiles(event.dataTransfer.files);
  else complain(new Problem(-1, "That was not a file", "Save the picture first; then drop it here, or choose it."));
});

restore();
await watchReadiness(); // first: what an unready server cannot list is then no second complaint
loadServer();
