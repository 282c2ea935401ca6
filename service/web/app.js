/** The entry point of the page: connects the views, the keyboard, drops and the API key. */

import { ask } from "./ask/ask.js";
import { addFiles } from "./ask/strip.js";
import { $ } from "./common/dom.js";
import { showActiveModel } from "./common/header.js";
import { clearProblems, showProblem } from "./common/notices.js";
import { watchReadiness } from "./common/readiness.js";
import { addView, currentView, go, loadView, loadedViews, route, shownView } from "./common/router.js";
import { Problem, apiKey, forgetApiKey, storeApiKey } from "./common/server.js";

const FRAGMENTS = { 1: "", 2: "#/browse", 3: "#/map", 4: "#/model", 5: "#/jobs" };

/** Load everything again that depends on the state of the server or on the API key. */
function refresh() {
  clearProblems();
  $("forget-key").hidden = !apiKey();
  showActiveModel();
  for (const view of loadedViews()) view.forget();
  route();
}

function choose(files) {
  if (!files.length) return;
  if (currentView() !== "ask") go("");
  addFiles(files);
}

addView("ask", ask);
addEventListener("popstate", route);
for (const kind of ["pointerover", "focusin"]) { // the view is loaded by the time of the click
  $("views").addEventListener(kind, ({ target }) => {
    const link = target.closest("a[data-view]");
    if (link) loadView(link.dataset.view).catch(() => {}); // reported when it is opened
  });
}
document.addEventListener("click", (event) => {
  const link = event.target.closest('[data-view], a[href^="#/"], #home');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault(); // these views are on this page
  clearProblems();
  go(link.hash);
  scrollTo({ top: 0 });
});

$("invitation").onclick = ({ target }) => {
  // The whole area reacts to the mouse. Keyboard users have the button inside it.
  if (target.closest("button") || !$("picker").classList.contains("compact")) $(target.id === "take" ? "camera" : "file").click();
};
$("picker").onchange = ({ target }) => {
  choose(target.files);
  target.value = ""; // so that the same file can be chosen again
};
$("key-form").onsubmit = (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) { // other characters are not allowed in a header
    $("key-help").textContent = "A key contains only letters, digits and punctuation, without spaces.";
    return;
  }
  storeApiKey(key);
  $("key").value = "";
  $("key-form").hidden = true;
  document.querySelector("main").focus();
  refresh();
};
$("forget-key").onclick = () => {
  forgetApiKey();
  location.reload();
};
$("help").onclick = () => $("shortcuts").showModal();

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea") && event.key !== "Escape") return;
  if (event.key === "?") $("help").click();
  else if (event.key in FRAGMENTS) go(FRAGMENTS[event.key]);
  else if (event.key.toLowerCase() === "o") $("file").click();
  else if (!shownView()?.key?.(event)) return;
  event.preventDefault();
});
document.addEventListener("paste", (event) => choose(event.clipboardData?.files ?? []));

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // for links too: the browser would leave the page
    event.dataTransfer.dropEffect = hasFiles(event) ? "copy" : "none";
    $("drop").hidden = !hasFiles(event);
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  if (hasFiles(event) && shownView()?.drop) shownView().drop(event.dataTransfer);
  else if (event.dataTransfer.files.length) choose(event.dataTransfer.files);
  else showProblem(new Problem(-1, "This is not a file", "Save the picture first, then drop or choose the file."));
});

$("ask").hidden = location.hash.startsWith("#/"); // the other views have nothing to show yet
await watchReadiness(refresh); // first, so that a server that is not ready is reported only once
refresh();
