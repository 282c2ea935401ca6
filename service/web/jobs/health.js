/** Small plots of the last minutes, from `/metrics`: the queue, the time of an answer, and the rate. */

import { $, el } from "../common/dom.js";
import { count, milliseconds } from "../common/format.js";
import { request } from "../common/server.js";

const EVERY_MS = 2000;
const MOST = 90; // readings, three minutes
const [WIDTH, HEIGHT] = [240, 48];
const SVG = "http://www.w3.org/2000/svg";

const PLOTS = [
  ["waiting", "Pictures in the queue", count],
  ["latency", "Time of an answer", milliseconds],
  ["rate", "Pictures per second", (value) => value.toFixed(value < 10 ? 1 : 0)],
];

const LINE = /^(\w+)(?:\{(.*)\})? ([-+.\deE]+|NaN|\+Inf)$/;
const ANSWERS = /route="\/v1\/(?:classify|search|images\/\{key[^}]*\}\/similar)"/; // requests that people wait for
const SUMS = {
  fc7_admitted_images: "waiting", fc7_images_total: "images", fc7_request_seconds_sum: "seconds", fc7_request_seconds_count: "answers",
};

/** Show the plots; return `run(signal)`, which updates them until the signal is aborted. */
export function health() {
  const plots = PLOTS.map(([key, title, text]) => ({ key, ...sparkline(title, text) }));
  $("sparklines").append(...plots.map(({ node }) => node));
  const history = [];
  let last = null;

  async function run(signal) {
    try {
      const now = await readMetrics(signal);
      if (last) {
        history.push(between(last, now));
        history.splice(0, history.length - MOST);
        for (const { key, draw } of plots) draw(history.map((reading) => reading[key]));
      }
      last = now;
      $("health-status").textContent = "";
    } catch (problem) {
      if (!signal.aborted) $("health-status").textContent = `The metrics cannot be read: ${problem.detail ?? problem}`;
    }
    setTimeout(() => signal.aborted || run(signal), EVERY_MS);
  }
  return run;
}

function sparkline(title, text) {
  const value = el("span.now", "–");
  const most = el("span.help", "no answers yet");
  const svg = document.createElementNS(SVG, "svg");
  // Hidden, because the numbers say the same.
  svg.ariaHidden = "true";
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const line = document.createElementNS(SVG, "path");
  svg.append(line);
  const node = el("figure.sparkline", el("figcaption", el("span", title), value), svg, most);

  function draw(values) {
    const known = values.filter((each) => each !== null);
    const scale = Math.max(...known, 0);
    const steps = values.map((each, i) => {
      const x = WIDTH - (values.length - 1 - i) * (WIDTH / (MOST - 1));
      const y = HEIGHT - 2 - (scale ? (each / scale) * (HEIGHT - 4) : 0);
      return each === null ? "" : `${x.toFixed(1)} ${y.toFixed(1)}`;
    });
    line.setAttribute("d", known.length ? `M${steps.filter(Boolean).join("L")}` : "");
    value.textContent = known.length ? text(known.at(-1)) : "–";
    most.textContent = known.length ? `at most ${text(scale)} in ${Math.ceil((values.length * EVERY_MS) / 60_000)} min` : "no answers yet";
  }
  return { node, draw };
}

/** Return {waiting, images, seconds, answers} now: a gauge and three counters. */
async function readMetrics(signal) {
  const text = await (await request("metrics", { signal })).text();
  const sums = { waiting: 0, images: 0, seconds: 0, answers: 0 };
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = LINE.exec(line) ?? [];
    if (name in SUMS && (!name.startsWith("fc7_request") || ANSWERS.test(labels))) sums[SUMS[name]] += Number(value);
  }
  return { ...sums, at: performance.now() };
}

/** Return what happened between two readings. `latency` is in ms, null if nothing was answered. */
function between(before, now) {
  const answers = now.answers - before.answers;
  return {
    waiting: now.waiting,
    rate: (1000 * (now.images - before.images)) / (now.at - before.at),
    latency: answers > 0 ? (1000 * (now.seconds - before.seconds)) / answers : null,
  };
}
