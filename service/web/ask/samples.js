/** "Try one": an indexed picture of each class, for visitors without a picture at hand. */

import { $, el } from "../common/dom.js";
import { showProblem } from "../common/notices.js";
import { isReady } from "../common/readiness.js";
import { query, requestJson } from "../common/server.js";
import { tile } from "../common/thumbnails.js";
import { labelOf } from "./sentence.js";

const MOST = 12;

let loading = false;

/** Return the first picture of each label or, without labels, the first pictures. */
async function samples() {
  const { images, fields } = await requestJson(`v1/index/fields${query({ field: "label", limit: MOST })}`);
  const values = fields.flatMap((field) => field.values).slice(0, MOST);
  if (!values.length) return (await requestJson(`v1/images${query({ limit: Math.min(MOST, images || 1) })}`)).images;
  const pages = await Promise.all(values.map(({ value }) =>
    requestJson(`v1/images${query({ where: `label:${typeof value === "string" ? JSON.stringify(value) : value}`, limit: 1 })}`)));
  return pages.flatMap((page) => page.images).sort((a, b) => labelOf(a.metadata).localeCompare(labelOf(b.metadata)));
}

/** Show the row, if pictures are indexed. */
export async function loadSamples() {
  $("samples").hidden = $("sample-list").childElementCount === 0;
  if (!isReady() || loading || !$("samples").hidden) return;
  try {
    loading = true;
    const images = await samples();
    const labelled = images.some(({ metadata }) => labelOf(metadata) !== null);
    $("samples-title").textContent = `No picture at hand? Try one of ${labelled ? "each class" : "these"}`;
    $("sample-list").replaceChildren(...images.map(({ key, thumbnail, metadata }) => {
      const label = labelOf(metadata) ?? key;
      return tile(key, thumbnail, label === key ? key : `${label}: ${key}`, el("span.caption", label));
    }));
    $("samples").hidden = images.length === 0 || !$("answer").hidden;
    $("no-images").hidden = images.length > 0;
  } catch (problem) {
    if (isReady()) showProblem(problem, loadSamples);
  } finally {
    loading = false;
  }
}
