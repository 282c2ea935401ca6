/** The confusion matrix as a table, whose cells show the confused pictures that the report names. */

import { button, el } from "../common/dom.js";
import { percent, plural } from "../common/format.js";
import { showProblem } from "../common/notices.js";
import { go } from "../common/router.js";
import { query, request, requestJson } from "../common/server.js";
import { tile } from "../common/thumbnails.js";
import { table } from "./card.js";

const MOST = 30; // classes of a table; of more, only the most frequent confusions are listed

/** Return the rows of a CSV file (RFC 4180). */
function rowsOf(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\n"]*))(,|\n|$)/g)) {
    rows.at(-1).push(quoted?.replaceAll('""', '"') ?? plain);
    if (end !== ",") rows.push([]);
  }
  return rows.filter((row) => row.length > 1);
}

/** Return the section, or "" for a version without the table. `address` returns that of a file of the report, or null. */
export async function confusion(address, signal) {
  const read = async (name) => (address(name) ? rowsOf(await (await request(address(name), { signal })).text()).slice(1) : []);
  const [rows, errors] = await Promise.all([read("confusion.csv"), read("worst_errors.csv")]);
  if (!rows.length) return "";
  const classes = rows.map(([label]) => label);
  const details = el("div", { className: "confused", role: "status" });
  const cell = (n, i, j, text) => button(text, () => show(details, classes[i], classes[j], n, errors), {
    className: "link", ariaLabel: `${plural(n, "picture")} of ${classes[i]} answered as ${classes[j]}`,
  });
  const counts = rows.map(([, ...row]) => row.map(Number));
  return el("section", { className: "confusions", ariaLabel: "Confusions" },
    el("h3", { textContent: "Look at the confused pictures" }),
    (classes.length <= MOST ? matrix : pairs)(classes, counts, cell), details);
}

function matrix(classes, counts, cell) {
  const head = (scope) => (textContent) => el("th", { scope, className: scope === "col" ? "number" : "", textContent });
  return table("Confusion matrix: true classes in rows, answers in columns",
    el("tr", {}, el("td"), ...classes.map(head("col"))),
    counts.map((row, i) => el("tr", {}, head("row")(classes[i]), ...row.map((n, j) =>
      el("td", { className: "number" }, n && i !== j ? cell(n, i, j, n) : String(n))))));
}

function pairs(classes, counts, cell) {
  const all = counts.flatMap((row, i) => row.map((n, j) => [n, i, j])).filter(([n, i, j]) => n && i !== j);
  return el("ol", {}, ...all.sort(([a], [b]) => b - a).slice(0, MOST).map(([n, i, j]) =>
    el("li", {}, cell(n, i, j, `${classes[i]} answered as ${classes[j]}: ${n}`))));
}

/** Show the pictures of a cell. Their keys in the index are their paths below the folder, as in the report. */
async function show(node, truth, answer, total, errors) {
  const named = errors.filter(([, label, , predicted]) => label === truth && predicted === answer);
  const where = `label:${JSON.stringify(truth)}`;
  try {
    const [labelled, ...found] = await Promise.all([{ where }, ...named.map(([name]) => ({ prefix: name.slice(0, 200), order: "key" }))]
      .map(async (parameters) => (await requestJson(`v1/images${query({ ...parameters, limit: 1 })}`)).images[0]));
    const isIndexed = (_, i) => found[i]?.key === named[i][0];
    const missing = named.filter((one, i) => !isIndexed(one, i)).map(([name]) => name);
    node.replaceChildren(
      el("p", { textContent: `${plural(total, "picture")} of ${truth} answered as ${answer}. The report names ${named.length || "none"} of them, among its worst errors.` }),
      el("ul", { className: "neighbours" }, ...named.map((one, i) => isIndexed(one, i) && picture(found[i], one)).filter(Boolean)),
      missing.length ? el("p", { className: "help", textContent: `Not indexed, so that they cannot be shown: ${missing.join(", ")}.` }) : "",
      labelled ? el("a", { href: `#/browse${query({ where })}`, textContent: `Browse the indexed pictures with the label ${truth}`, data: { view: "browse" } })
        : `No indexed picture has the label ${truth}.`);
  } catch (problem) {
    showProblem(problem);
  }
}

function picture({ key, thumbnail }, [, , own, , predicted]) {
  const text = `${percent(Number(predicted))} for the answer, ${percent(Number(own))} for the true class`;
  const item = tile(key, thumbnail, `${key}, ${text}`, text);
  item.firstChild.addEventListener("click", () => go(`#${encodeURIComponent(key)}`));
  return item;
}
