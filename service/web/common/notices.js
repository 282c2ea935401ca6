/** Shows problems, and asks for the API key. */

import { $, button, el } from "./dom.js";
import { isReady } from "./readiness.js";
import { Problem, apiKey, forgetApiKey } from "./server.js";

const RETRYABLE = new Set([0, 429, 503, 504]);

/** Return `problem`, or a Problem for an unexpected error of the page itself. */
export const asProblem = (problem) =>
  (problem instanceof Problem ? problem : new Problem(-1, "The result could not be displayed", String(problem)));

export const clearProblems = () => $("problems").replaceChildren();

/** Show a problem once, even if several requests had it. A missing API key is asked for instead. */
export function showProblem(problem, retry = null) {
  problem = asProblem(problem);
  if (problem.status === 401) return askForKey(problem.key);
  const text = problem.title + problem.detail;
  if ([...$("problems").children].some((shown) => shown.dataset.text === text)) return;
  const notice = el("section.problem", { data: { text } }, el("h2", problem.title), el("p", problem.detail));
  if (retry && RETRYABLE.has(problem.status)) {
    notice.append(button("Try again", () => {
      notice.remove();
      document.querySelector("main").focus(); // the focused button was removed
      retry();
    }));
  }
  $("problems").append(notice);
}

/** Show why a view could not be loaded, unless the page already says that the server is not ready. */
export function showLoadProblem(problem, retry) {
  if (isReady() || problem.status === 401) showProblem(problem, retry);
}

/** Ask for an API key. `rejected` is the key of the rejected request, or empty. */
function askForKey(rejected) {
  if (rejected === apiKey()) forgetApiKey();
  if (apiKey()) return; // an older request was rejected; another key is already in use
  if (rejected) $("key-help").textContent = "The server rejected this key.";
  $("forget-key").hidden = true;
  if (!$("key-form").hidden) return; // several requests can be rejected; only the first one moves the focus
  $("key-form").hidden = false;
  $("key").focus();
}
