/** Compares two versions: their figures, their classes and the pictures of their reports beside each other. */

import { el, options } from "../common/dom.js";
import { percent } from "../common/format.js";
import { go } from "../common/router.js";
import { query, versionPath } from "../common/server.js";
import { figures, isNumber, table } from "./card.js";
import { reportFigures } from "./report.js";

const nameOf = ({ name, version }) => `${name}:${version}`;

/** Return the section, or "" if there is only one version. `other`: the name of the version to compare with, or null. */
export async function compare(models, model, other, signal) {
  const others = models.filter((each) => each !== model);
  if (!others.length) return "";
  const chosen = others.find((each) => nameOf(each) === other);
  const select = el("select", { id: "compare" }, el("option", { value: "" }, "choose a version"), ...options(others.map(nameOf)));
  if (chosen) select.value = other;
  select.onchange = () => {
    go(`#/model/${versionPath(model)}${query({ with: select.value })}`);
  };
  return el("section.compare", { ariaLabel: "Compare" }, el("h2", "Compare"),
    el("p.row", el("label", { htmlFor: "compare" }, `Compare ${nameOf(model)} with`), select),
    ...(chosen ? await sides([model, chosen], signal) : []));
}

async function sides(models, signal) {
  const [left, right] = await Promise.all(models.map((model) => reportFigures(model, signal)));
  const names = models.map(nameOf);
  const values = ({ metrics }) => new Map(figures(metrics).map(([title, key, text]) => [title, text(metrics[key])]));
  const recalls = ({ metrics }) => new Map((metrics.per_class ?? []).filter(({ recall }) => isNumber(recall)).map(({ label, recall }) => [label, percent(recall)]));
  const pictures = [...left].flatMap(([file, show]) => (right.has(file) ? [show(names[0]), right.get(file)(names[1])] : []));
  return [
    el("div.tables", beside("Figures of both versions", ["Figure", ...names], models.map(values)),
      beside("Recall of each class", ["Class", ...names], models.map(recalls))),
    el("div.pairs", ...pictures),
  ];
}

/** Return a table with the values of both sides. */
function beside(caption, names, [a, b]) {
  return table(caption, names,
    [...new Set([...a.keys(), ...b.keys()])].map((title) => [title, a.get(title) ?? "–", b.get(title) ?? "–"]));
}
