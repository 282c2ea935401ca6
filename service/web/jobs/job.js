/** One job: what it does, how far it is, what was skipped and why, and what can be done with it. */

import { button, el } from "../common/dom.js";
import { count, fileSize, plural } from "../common/format.js";

const KINDS = { archive: "Add an archive", classify: "Classify an archive", head: "Fit the last layer to the labels", map: "Compute a map", backup: "Back up" };
const STATES = { waiting: "waiting", running: "running", done: "done", failed: "failed", cancelled: "stopped" };
const SKIPPED = 20; // entries to show

export const isActive = ({ state }) => state === "waiting" || state === "running";

/** Return a time that has passed or is left, in words. */
function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Return the element of a job. `pace`: entries per second, or null. `actions`: {cancel, retry, remove, download}. */
export function jobCard(job, pace, actions) {
  const { id, kind, state, created, seen, total, skipped, error, waiting_for: waitingFor } = job;
  const label = KINDS[kind] ?? kind;
  const buttons = [
    isActive(job) && button("Stop", () => actions.cancel(job), { className: "small", ariaLabel: `Stop: ${label}` }),
    state === "failed" && button("Try again", () => actions.retry(job), { className: "small", ariaLabel: `Try again: ${label}` }),
    job.result_bytes > 0 && button(`Download the result (${fileSize(job.result_bytes)})`, () => actions.download(job), { className: "small" }),
    !isActive(job) && (job.archive_bytes > 0 || job.result_bytes > 0)
      && button("Delete its files", () => actions.remove(job), { className: "small" }),
  ];
  return el("li", { className: `job ${state}`, data: { job: id } },
    el("h3", {}, label, " ", el("span", { className: "state", textContent: STATES[state] ?? state })),
    isActive(job) && total > 0 && el("progress", { value: seen, max: total, ariaLabel: `Progress: ${label}` }),
    el("p", { className: "help", textContent: factsOf(job, pace) }),
    waitingFor && el("p", { textContent: `It waits and tries again by itself: ${waitingFor}` }),
    error && el("p", { className: "alarm", textContent: error }),
    resultOf(job),
    skipped > 0 && skippedOf(job),
    el("p", { className: "row" }, ...buttons),
    el("p", { className: "help" }, `Started ${new Date(created).toLocaleString("en-GB")} · `, el("code", { textContent: id })));
}

function factsOf({ state, seen, total, added, replaced, unchanged, processed, skipped, created, ended }, pace) {
  const left = state === "running" && pace > 0 && total > seen ? (total - seen) / pace : null;
  return [
    total > 0 ? `${count(seen)} of ${count(total)} (${Math.floor((100 * seen) / total)} %)` : null,
    added > 0 && `${count(added)} added`, replaced > 0 && `${count(replaced)} replaced`, unchanged > 0 && `${count(unchanged)} unchanged`,
    processed > 0 && processed !== seen && `${count(processed)} processed`, skipped > 0 && `${count(skipped)} skipped`,
    state === "running" && pace > 0 && `${pace < 10 ? pace.toFixed(1) : count(Math.round(pace))} per second`,
    left !== null && `about ${duration(left)} left`,
    ended && `took ${duration((new Date(ended) - new Date(created)) / 1000)}`,
  ].filter(Boolean).join(" · ") || "Nothing done yet.";
}

/** The result in words: a link to the version that a head became, or plain values. */
function resultOf({ kind, result }) {
  if (!result) return null;
  if (kind === "map") return el("p", {}, el("a", { href: "#/map", textContent: "Show the map", data: { view: "map" } }));
  const { name, version } = result.model ?? {};
  if (kind === "head" && version) {
    const link = el("a", { href: `#/model/${encodeURIComponent(name)}/${version}`, textContent: `${name}:${version}`, data: { view: "model" } });
    return el("p", {}, "Published as ", link, ". Activate it there.");
  }
  return null;
}

function skippedOf({ skipped, skipped_by_reason: reasons, skipped_images: entries }) {
  const why = Object.entries(reasons).map(([reason, n]) => `${count(n)} ${reason.replaceAll("_", " ")}`).join(", ");
  return el("details", {}, el("summary", { textContent: `${plural(skipped, "entry was", "entries were")} skipped: ${why}` }),
    el("ul", { className: "skipped" }, ...entries.slice(0, SKIPPED).map(({ name, reason }) =>
      el("li", {}, el("code", { textContent: name }), ` ${reason}`))),
    skipped > SKIPPED && el("p", { className: "help", textContent: `and ${count(skipped - SKIPPED)} more` }));
}
