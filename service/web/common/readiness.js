/** Watches whether the server is ready. */

import { $, el } from "./dom.js";

const POLL_MS = 3000;

let ready = true;

export const isReady = () => ready;

/** Check readiness. While the server is not ready, show the reasons and check again; then call `onReady`. */
export async function watchReadiness(onReady) {
  const response = await fetch("readyz").catch(() => null);
  const before = ready;
  ready = response?.ok ?? before; // without a response, later requests report the problem
  if (response && !ready) {
    const body = await response.json().catch(() => ({}));
    const reasons = body.reasons ?? [body.detail ?? "It gave no reason."];
    $("not-ready").replaceChildren(el("h2", "The server is not ready yet"),
      ...reasons.map((reason) => el("p", reason)));
  }
  $("not-ready").hidden = ready;
  if (ready && !before) onReady();
  if (!ready) setTimeout(watchReadiness, POLL_MS, onReady);
}
