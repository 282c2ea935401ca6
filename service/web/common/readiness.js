/** Watches whether the server is ready. */

import { $, el } from "./dom.js";

const POLL_MS = 3000;

const state = { ready: true };

export const isReady = () => state.ready;

/** Check readiness. While the server is not ready, show the reasons and check again; then call `onReady`. */
export async function watchReadiness(onReady) {
  const response = await fetch("readyz").catch(() => null);
  const ready = response === null ? state.ready : response.ok; // without a response, later requests report the problem
  if (response && !ready) {
    const body = await response.json().catch(() => ({}));
    const reasons = body.reasons ?? [body.detail ?? "It gave no reason."];
    $("not-ready").replaceChildren(el("h2", { textContent: "The server is not ready yet" }),
      ...reasons.map((reason) => el("p", { textContent: reason })));
  }
  $("not-ready").hidden = ready;
  const becameReady = ready && !state.ready;
  state.ready = ready;
  if (becameReady) onReady();
  if (!ready) setTimeout(watchReadiness, POLL_MS, onReady);
}
