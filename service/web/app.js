/** The entry point of the page: connects the controls and loads the first content. */

import { $ } from "./dom.js";
import { loadPage, reload } from "./gallery.js";
import { showProblem } from "./notices.js";
import { watchReadiness } from "./readiness.js";
import { chooseFile, chooseTile, clear, hasSelection, restore, showAgain } from "./selection.js";
import { Problem, forgetApiKey, storeApiKey } from "./server.js";

/** Load everything again that depends on the state of the server or on the API key. */
function refresh() {
  reload();
  showAgain();
}

$("invitation").addEventListener("click", ({ target }) => {
  // The whole area reacts to the mouse. Keyboard users have the button inside it.
  if (target.closest("button") || !$("picker").classList.contains("compact")) $("file").click();
});
$("file").addEventListener("change", (event) => {
  chooseFile(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
$("more").addEventListener("click", loadPage);
for (const list of ["neighbours", "gallery"]) $(list).addEventListener("click", chooseTile);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(key)) { // other characters are not allowed in a header
    $("key-help").textContent = "A key contains only letters, digits and punctuation, without spaces.";
    return;
  }
  storeApiKey(key);
  $("key").value = "";
  $("key-form").hidden = true;
  $("choose").focus();
  refresh();
});
$("forget-key").addEventListener("click", () => {
  forgetApiKey();
  location.reload();
});

document.addEventListener("paste", (event) => chooseFile(event.clipboardData?.files ?? []));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !hasSelection()) return;
  history.pushState(null, "", location.pathname + location.search);
  clear();
  $("choose").focus();
});
addEventListener("popstate", restore);

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // for links too: the browser would leave the page
  event.dataTransfer.dropEffect = hasFiles(event) ? "copy" : "none";
  $("drop").hidden = !hasFiles(event);
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  if (event.dataTransfer.files.length) chooseFile(event.dataTransfer.files);
  else showProblem(new Problem(-1, "This is not a file", "Save the image first, then drop or choose the file."));
});

restore();
await watchReadiness(refresh); // first, so that a server that is not ready is reported only once
reload();
