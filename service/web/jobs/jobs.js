/** The view Jobs: work in the background, the health of the server, and snapshots. */

import { $, announce, button, el } from "../common/dom.js";
import { clearProblems, showProblem } from "../common/notices.js";
import { isReady } from "../common/readiness.js";
import { query, request, requestJson } from "../common/server.js";
import { health } from "./health.js";
import { isActive, jobCard } from "./job.js";
import { snapshots } from "./snapshots.js";

const SOON_MS = 1000; // while a job is active
const LATER_MS = 5000;
const WINDOW_MS = 10_000; // for the rate of a job

const state = { controller: new AbortController(), history: new Map() };

const list = el("ul", { id: "job-list", className: "job-list" }, el("li", { className: "help", textContent: "Loading …" }));
const status = el("p", { className: "help", role: "status" });
const file = el("input", {
  type: "file", className: "visually-hidden", tabIndex: -1, ariaHidden: "true", accept: ".zip,.tar,.gz,.tgz,.bz2,.tbz2",
});
const plots = health();
$("jobs").append(
  el("div", { className: "job-columns" },
    el("section", { ariaLabel: "Background jobs" },
      el("h2", { textContent: "Jobs" }),
      el("p", { className: "row" }, button("Add an archive of pictures", () => file.click(), { className: "small primary" }),
        button("Compute a map", () => start("map"), { className: "small" }),
        button("Fit the last layer to the labels", () => start("head"), { className: "small" })),
      file, status, list),
    el("div", {}, plots.node, snapshots())));

/** Return the entries per second in the last seconds, or null if that is not known yet. */
function paceOf({ id, seen, state: now }) {
  if (now !== "running") {
    state.history.delete(id);
    return null;
  }
  const readings = state.history.get(id) ?? [];
  readings.push([performance.now(), seen]);
  while (readings.length > 2 && readings.at(-1)[0] - readings[0][0] > WINDOW_MS) readings.shift();
  state.history.set(id, readings);
  const [[t0, n0], [t1, n1]] = [readings[0], readings.at(-1)];
  return t1 > t0 && n1 > n0 ? (1000 * (n1 - n0)) / (t1 - t0) : null;
}

async function watch(signal) {
  let pause = LATER_MS;
  try {
    const { jobs: all } = await requestJson("v1/jobs", { signal });
    if (signal.aborted) return;
    show(all);
    if (all.some(isActive)) pause = SOON_MS;
  } catch (problem) {
    if (signal.aborted) return;
    if (isReady() || problem.status === 401) showProblem(problem, () => watch(signal));
    return;
  }
  setTimeout(() => signal.aborted || watch(signal), pause);
}

/** Show the jobs. Only what changed is drawn again, so that the focus and opened details stay. */
function show(all) {
  const old = new Map([...list.children].map((node) => [node.dataset.job, node]));
  const nodes = all.map((job) => {
    const pace = paceOf(job);
    const text = JSON.stringify([job, pace]);
    const node = old.get(job.id);
    if (node?.text === text) return node;
    return replaced(node, Object.assign(jobCard(job, pace, actions), { text }));
  });
  if (nodes.length !== list.childElementCount || nodes.some((node, i) => list.children[i] !== node)) list.replaceChildren(...nodes);
  if (!nodes.length) list.replaceChildren(el("li", { className: "help", textContent: "No jobs yet." }));
}

/** Put `node` into the place of `old`, with its open details and its focus. */
function replaced(old, node) {
  if (!old) return node;
  if (old.querySelector("details")?.open) node.querySelector("details")?.setAttribute("open", "");
  const focused = old.contains(document.activeElement) ? document.activeElement.textContent : null;
  old.replaceWith(node);
  if (focused) [...node.querySelectorAll("button, summary")].find(({ textContent }) => textContent === focused)?.focus();
  return node;
}

async function change(work, words) {
  clearProblems();
  try {
    await work();
    announce(words);
  } catch (problem) {
    showProblem(problem);
  }
  again();
}

const path = ({ id }) => `v1/jobs/${encodeURIComponent(id)}`;
const actions = {
  cancel: (job) => change(() => request(path(job), { method: "DELETE" }), "The job stops after its current batch."),
  remove: (job) => change(() => request(path(job), { method: "DELETE" }), "The files are deleted."),
  retry: (job) => change(() => request(`${path(job)}/retry`, { method: "POST" }), "The job continues."),
  async download(job) {
    try {
      const blob = await (await request(`${path(job)}/result`)).blob();
      const url = URL.createObjectURL(blob);
      el("a", { href: url, download: `${job.id}.${job.parameters.format ?? "jsonl"}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (problem) {
      showProblem(problem);
    }
  },
};

const start = (kind) => change(() => request(`v1/jobs${query({ kind })}`, { method: "POST", json: {} }), "The job was started.");

file.addEventListener("change", async () => {
  const [archive] = file.files;
  file.value = "";
  if (!archive) return;
  status.textContent = `Uploading ${archive.name} …`;
  await change(() => request("v1/jobs", { body: archive }), "The job was started.");
  status.textContent = "";
});

/** Start watching again, immediately. */
function again() {
  state.controller.abort();
  if ($("jobs").hidden) return;
  state.controller = new AbortController();
  watch(state.controller.signal);
  plots.run(state.controller.signal);
}

export const jobs = {
  show(_path, _parameters, entered) {
    $("jobs").hidden = false;
    document.title = "Jobs – fc7";
    if (entered) clearProblems();
    again();
  },
  hide() {
    state.controller.abort();
    $("jobs").hidden = true;
  },
  forget() {
    list.replaceChildren();
  },
  key: () => false,
};
