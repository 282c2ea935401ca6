/** The view Jobs: work in the background, the health of the server, snapshots and backups. */

import { $, announce, el } from "../common/dom.js";
import { handover } from "../common/handover.js";
import { clearProblems, showLoadProblem, showProblem } from "../common/notices.js";
import { request, requestJson, saveFile, signals } from "../common/server.js";
import { backups, snapshots } from "./copies.js";
import { health } from "./health.js";
import { isActive, jobCard } from "./job.js";

const SOON_MS = 1000; // while a job is active
const LATER_MS = 5000;
const WINDOW_MS = 10_000; // for the rate of a job

const state = { history: new Map(), backups: null };
const watched = signals();

const [list, status, file] = ["list", "status", "file"].map((id) => $(`job-${id}`));
const watchHealth = health();
const taken = [snapshots(), backups(again)];
$("job-server").append(...taken.map(({ node }) => node));
$("job-archive").onclick = () => file.click();
for (const kind of ["map", "head"]) {
  $(`job-${kind}`).onclick = () => change(() => request(`v1/jobs?kind=${kind}`, { method: "POST", json: {} }), "The job was started.");
}

/** Return the entries per second in the last seconds, or null if that is not known yet. */
function paceOf({ id, seen, state: now }) {
  if (now !== "running") return null;
  const readings = state.history.get(id) ?? [];
  readings.push([performance.now(), seen]);
  while (readings.length > 2 && readings.at(-1)[0] - readings[0][0] > WINDOW_MS) readings.shift();
  state.history.set(id, readings);
  const [[t0, n0], [t1, n1]] = [readings[0], readings.at(-1)];
  return t1 > t0 && n1 > n0 ? (1000 * (n1 - n0)) / (t1 - t0) : null;
}

async function watch(signal) {
  try {
    const { jobs: all } = await requestJson("v1/jobs", { signal });
    if (signal.aborted) return;
    show(all);
    const done = all.filter(({ state: now }) => now === "done");
    handover.mapJob = done.find(({ kind }) => kind === "map")?.id ?? null;
    const complete = done.filter(({ kind }) => kind === "backup").length;
    if (complete !== (state.backups ?? complete)) taken[1].load();
    state.backups = complete;
    setTimeout(() => signal.aborted || watch(signal), all.some(isActive) ? SOON_MS : LATER_MS);
  } catch (problem) {
    if (signal.aborted) return;
    list.firstElementChild?.classList.remove("loading");
    showLoadProblem(problem, () => watch(signal));
  }
}

/** Show the jobs. Only what changed is drawn again, so that the focus and opened details stay. */
function show(all) {
  const old = new Map([...list.children].map((node) => [node.dataset.job, node]));
  const nodes = all.map((job) => {
    const pace = paceOf(job);
    const text = JSON.stringify([job, pace]);
    const node = old.get(job.id);
    return node?.text === text ? node : replaced(node, Object.assign(jobCard(job, pace, actions), { text }));
  });
  if (!nodes.length) nodes.push(el("li.help", "No jobs yet."));
  if (nodes.length !== list.childElementCount || nodes.some((node, i) => list.children[i] !== node)) list.replaceChildren(...nodes);
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
const cancel = (job, words) => change(() => request(path(job), { method: "DELETE" }), words);
const actions = {
  cancel: (job) => cancel(job, "The job stops after its current batch."),
  remove: (job) => cancel(job, "The files are deleted."),
  retry: (job) => change(() => request(`${path(job)}/retry`, { method: "POST" }), "The job continues."),
  download: (job) => saveFile(`${path(job)}/result`, `${job.id}.${job.parameters.format ?? "jsonl"}`).catch(showProblem),
};

file.onchange = async () => {
  const [archive] = file.files;
  file.value = "";
  if (!archive) return;
  status.textContent = `Uploading ${archive.name} …`;
  await change(() => request("v1/jobs", { body: archive }), "The job was started.");
  status.textContent = "";
};

/** Start watching again, immediately. */
function again() {
  if ($("jobs").hidden) return;
  const signal = watched.next();
  watch(signal);
  watchHealth(signal);
}

export const jobs = {
  show(_path, _parameters, entered) {
    if (entered) clearProblems();
    again();
    for (const { load } of taken) load();
  },
  hide: watched.abort,
  forget: () => list.replaceChildren(),
};
