/** The figures of the serving model on its validation images. */

import { $, el } from "./dom.js";
import { percent } from "./format.js";

/** Show the figures that the model has. One that was imported without images has none. */
export function showFigures(model) {
  const figures = model?.metrics ?? {};
  const interval = (range) => (range ? ` (95 % interval ${percent(range[0])} to ${percent(range[1])})` : "");
  const rows = [
    ["Top-1 error", "top1_error", (value) => percent(value) + interval(figures.top1_error_interval)],
    ["Error of always predicting the most frequent class", "majority_class_error", percent],
    ["Balanced accuracy", "balanced_accuracy", (value) => percent(value) + interval(figures.balanced_accuracy_interval)],
    ["Macro F1", "macro_f1", (value) => value.toFixed(2)],
    ["Expected calibration error", "expected_calibration_error", percent],
    ["Validation images", "images", (value) => value.toLocaleString("en")],
  ].filter(([, name]) => typeof figures[name] === "number");
  $("figures").hidden = rows.length === 0;
  $("figures-rows").replaceChildren(
    ...rows.map(([title, name, text]) =>
      el("tr", {}, el("th", { scope: "row", textContent: title }), el("td", { textContent: text(figures[name]) })),
    ),
  );
}
