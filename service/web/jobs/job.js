/** One job: what it does, how far it is, what was skipped and why, and what can be done with it. */

import { button, el } from "../common/dom.js";
import { count, fileSize, plural } from "../common/format.js";
import { versionLink } from "../common/server.js";

const KINDS = { archive: "Add an archive", classify: "Classify an archive", head: "Fit the last layer to the labels", map: "Compute a map", backup: "Back up" };
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
  const ended = !isActive(job);
  const act = (text, work) => button(text, () => work(job), { className: "small", ariaLabel: `${text}: ${label}` });
  const buttons = [
    !ended && act("Stop", actions.cancel),
    state === "failed" && act("Try again", actions.retry),
    job.result_bytes > 0 && act(`Download the result (${fileSize(job.result_bytes)})`, actions.download),
    ended && (job.archive_bytes > 0 || job.result_bytes > 0) && act("Delete its files", actions.remove),
  ];
  return el(`li.job.${state}`, { data: { job: id } },
    el("h3", label, " ", el("span.state", state === "cancelled" ? "stopped" : state)),
    !ended && total > 0 && el("progress", { value: seen, max: total, ariaLabel: `Progress: ${label}` }),
    el("p.help", factsOf(job, pace)),
    waitingFor && el("p", `It waits and tries again by itself: ${waitingFor}`),
    error && el("p.alarm", error),
    resultOf(job),
    skipped > 0 && skippedOf(job),
    el("p.row", ...buttons),
    el("p.help", `Started ${new Date(created).toLocaleString("en-GB")} · `, el("code", id)));
}

function factsOf({ kind, state, seen, total, added, replaced, unchanged, processed, skipped, created, ended }, pace) {
  const amount = kind === "backup" ? fileSize : count; // a backup counts bytes
  const some = (n, word) => n > 0 && `${count(n)} ${word}`;
  const left = state === "running" && pace > 0 && total > seen ? (total - seen) / pace : null;
  return [
    total > 0 && `${amount(seen)} of ${amount(total)} (${Math.floor((100 * seen) / total)} %)`,
    some(added, "added"), some(replaced, "replaced"), some(unchanged, "unchanged"),
    processed > 0 && processed !== seen && `${amount(processed)} processed`, some(skipped, "skipped"),
    state === "running" && pace > 0 && `${pace < 10 ? pace.toFixed(1) : amount(Math.round(pace))} per second`,
    left !== null && `about ${duration(left)} left`,
    ended && `took ${duration((new Date(ended) - new Date(created)) / 1000)}`,
  ].filter(Boolean).join(" · ") || "Nothing done yet.";
}

/** The result in words: a link to the map, or to the version that a head became. */
function resultOf({ kind, result }) {
  if (kind === "map" && result) return el("p", el("a", { href: "#/map" }, "Show the map"));
  return kind === "head" && result?.model?.version && el("p", "Published as ", versionLink(result.model), ". Activate it there.");
}

function skippedOf({ skipped, skipped_by_reason: reasons, skipped_images: entries }) {
  const why = Object.entries(reasons).map(([reason, n]) => `${count(n)} ${reason.replaceAll("_", " ")}`).join(", ");
  return el("details", el("summary", `${plural(skipped, "entry was", "entries were")} skipped: ${why}`),
    el("ul.skipped", ...entries.slice(0, SKIPPED).map(({ name, reason }) => el("li", el("code", name), ` ${reason}`))),
    skipped > SKIPPED && el("p.help", `and ${count(skipped - SKIPPED)} more`));
}
