/** The card of a version: what it was trained for, and how good it is. */

import { el, fill } from "../common/dom.js";
import { count, day, percent, plural } from "../common/format.js";

export const isNumber = (value) => typeof value === "number";
const range = (pair) => (Array.isArray(pair) ? `95 % interval ${percent(pair[0])} to ${percent(pair[1])}` : "");

/** The figures of a version, each with its explanation. One that was imported without images has none. */
export function figures(metrics) {
  const views = metrics.views === 10 ? " (mean of ten crops)" : "";
  return [
    ["Wrong best class", "top1_error", percent, `top-1 error${views}. ${range(metrics.top1_error_interval)}`],
    ["Not among the five best", "top5_error", percent, "top-5 error"],
    ["Always answering the most frequent class", "majority_class_error", percent, "the error of this baseline, to compare with"],
    ["Balanced accuracy", "balanced_accuracy", percent, `the mean share of each class that is recognized. ${range(metrics.balanced_accuracy_interval)}`],
    ["Macro F1", "macro_f1", (value) => value.toFixed(2), "the mean F1 of the classes, from 0 to 1"],
    ["Calibration error", "expected_calibration_error", percent, "how far the percentages are from the share of right answers, on average"],
    ["Validation pictures", "images", count, "the figures were measured on these"],
  ].filter(([, name]) => isNumber(metrics[name]));
}

function verdict({ metrics }) {
  const { top1_error: error, majority_class_error: baseline, better_than_baseline: better } = metrics;
  if (!isNumber(error)) return "This version has no figures, because it was published without validation pictures.";
  const right = `It names the right class for ${percent(1 - error)} of the validation pictures`;
  if (!isNumber(baseline)) return `${right}.`;
  const compared = `${right}; always answering the most frequent class would be right for ${percent(1 - baseline)}.`;
  return better === false ? `${compared} The difference may be chance.` : compared;
}

export const statusOf = ({ serving, active }) => (serving ? "answers now" : active ? "active after the next start" : "");

/** Return the card. */
export function card(model) {
  const { name, version, created, architecture, classes, metrics } = model;
  const status = statusOf(model) || "not active";
  const rows = figures(metrics).map(([title, key, text, help]) =>
    [[title, el("span.help", help)], text(metrics[key])]);
  const perClass = Array.isArray(metrics.per_class) ? metrics.per_class : [];
  return el("section.card",
    el("header", el("h2", `${name}, version ${version}`),
      el("p.help", `${status} · ${architecture} · ${plural(classes.length, "class", "classes")} · published ${day(created)}`)),
    el("p.sentence", verdict(model)),
    el("div.tables",
      rows.length > 0 && table("Figures on the validation pictures", null, rows),
      perClass.length ? classTable(perClass) : classList(classes)));
}

/** Return a table. `head`: the columns, or null. `rows`: lists of texts or elements. The first of each names the row. */
export function table(caption, head, rows) {
  const line = (scope, tag, properties = {}) => ([first, ...others]) => el("tr", first === "" ? el("td") : el("th", { scope }, ...[first].flat()),
    ...others.map((each) => (each === "" ? el("td") : el(tag, properties, each))));
  return el("div.table", { tabIndex: 0, role: "region", ariaLabel: caption },
    el("table", el("caption", caption), head && el("thead", line("col", "th.number", { scope: "col" })(head)),
      el("tbody", ...rows.map(line("row", "td.number")))));
}

function classTable(classes) {
  const share = (value) => {
    if (!isNumber(value)) return "–";
    return el("span", el("span.meter", { ariaHidden: "true" }, fill(value)), el("span.share", percent(value)));
  };
  const rows = classes.map(({ label, images, precision, recall }) => [label, count(images ?? 0), share(precision), share(recall)]);
  const box = table("Figures of each class", ["Class", "Pictures", "Precision", "Recall"], rows);
  box.append(el("p.help", "Precision: how often this answer is right. Recall: how many pictures of the class are found."));
  return box;
}

const classList = (classes) =>
  el("div.table", { tabIndex: 0, role: "region", ariaLabel: "Classes" }, el("h3", "Classes"),
    el("ul.class-list", ...classes.map((textContent) => el("li", textContent))));
