/** Small plots of the last minutes: the queue, the time of an answer, and the rate. */

import { el } from "../common/dom.js";
import { count, milliseconds } from "../common/format.js";
import { between, readMetrics } from "./metrics.js";

const EVERY_MS = 2000;
const MOST = 90; // readings, three minutes
const [WIDTH, HEIGHT] = [240, 48];
const SVG = "http://www.w3.org/2000/svg";

const PLOTS = [
  ["waiting", "Pictures in the queue", count],
  ["latency", "Time of an answer", milliseconds],
  ["rate", "Pictures per second", (value) => value.toFixed(value < 10 ? 1 : 0)],
];

/** Return the section, and `run(signal)`, which updates it until the signal is aborted. */
export function health() {
  const plots = PLOTS.map(([key, title, text]) => ({ key, text, title, ...sparkline(title) }));
  const status = el("p", { className: "help", role: "status" });
  const node = el("section", { className: "health", ariaLabel: "Health" }, el("h2", { textContent: "Health" }),
    el("div", { className: "sparklines" }, ...plots.map(({ node: plot }) => plot)), status);
  const history = [];
  let last = null;

  async function run(signal) {
    try {
      const now = await readMetrics(signal);
      if (last) {
        history.push(between(last, now));
        history.splice(0, history.length - MOST);
        for (const { key, text, draw } of plots) draw(history.map((reading) => reading[key]), text);
      }
      last = now;
      status.textContent = "";
    } catch (problem) {
      if (!signal.aborted) status.textContent = `The metrics cannot be read: ${problem.detail ?? problem}`;
    }
    if (!signal.aborted) setTimeout(() => signal.aborted || run(signal), EVERY_MS);
  }
  return { node, run };
}

function sparkline(title) {
  const value = el("span", { className: "now", textContent: "–" });
  const most = el("span", { className: "help", textContent: "no answers yet" });
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true"); // the numbers say the same
  const line = document.createElementNS(SVG, "path");
  svg.append(line);
  const node = el("figure", { className: "sparkline" }, el("figcaption", {}, el("span", { textContent: title }), value), svg, most);

  function draw(values, text) {
    const known = values.filter((each) => each !== null);
    const scale = Math.max(...known, 0);
    let started = false;
    const steps = values.map((each, i) => {
      if (each === null) return "";
      const x = WIDTH - (values.length - 1 - i) * (WIDTH / (MOST - 1));
      const y = HEIGHT - 2 - (scale ? (each / scale) * (HEIGHT - 4) : 0);
      const step = `${started ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      started = true;
      return step;
    });
    line.setAttribute("d", steps.join(""));
    value.textContent = known.length ? text(known.at(-1)) : "–";
    most.textContent = known.length ? `at most ${text(scale)} in ${Math.ceil((values.length * EVERY_MS) / 60_000)} min` : "no answers yet";
  }
  return { node, draw };
}
