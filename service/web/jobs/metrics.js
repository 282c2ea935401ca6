/** Reads what the plots show from `/metrics`, in Prometheus' text format. */

import { request } from "../common/server.js";

const LINE = /^(\w+)(?:\{(.*)\})? ([-+.\deE]+|NaN|\+Inf)$/;
const ANSWERS = /route="\/v1\/(?:classify|search|images\/\{key[^}]*\}\/similar)"/; // requests that people wait for

/** Return {waiting, images, seconds, answers} now: a gauge and three counters. */
export async function readMetrics(signal) {
  const text = await (await request("metrics", { signal })).text();
  const sums = { waiting: 0, images: 0, seconds: 0, answers: 0 };
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = LINE.exec(line) ?? [];
    if (name === "fc7_admitted_images") sums.waiting += Number(value);
    else if (name === "fc7_images_total") sums.images += Number(value);
    else if (name === "fc7_request_seconds_sum" && ANSWERS.test(labels)) sums.seconds += Number(value);
    else if (name === "fc7_request_seconds_count" && ANSWERS.test(labels)) sums.answers += Number(value);
  }
  return { ...sums, at: performance.now() };
}

/** Return what happened between two readings. `latency` is in ms, null if nothing was answered. */
export function between(before, now) {
  const answers = now.answers - before.answers;
  return {
    waiting: now.waiting,
    rate: (1000 * (now.images - before.images)) / (now.at - before.at),
    latency: answers > 0 ? (1000 * (now.seconds - before.seconds)) / answers : null,
  };
}
