/** The confusion matrix as a table, whose cells show the confused pictures. */

import { button, el } from "../common/dom.js";
import { count, percent, plural } from "../common/format.js";
import { handover, itemOf } from "../common/handover.js";
import { showProblem } from "../common/notices.js";
import { go, openPicture } from "../common/router.js";
import { query, request, requestJson } from "../common/server.js";
import { tile } from "../common/thumbnails.js";
import { table } from "./card.js";

const MOST = 30; // classes of a table; of more, only the most frequent confusions are listed
const SHOWN = 24; // pictures at a time
const NAMES = 10; // of pictures that are not indexed

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
  const read = async (name) => rowsOf(await (await request(address(name), { signal })).text()).slice(1);
  const rows = address("confusion.csv") ? await read("confusion.csv") : [];
  if (!rows.length) return "";
  const classes = rows.map(([label]) => label);
  const details = el("div.confused", { role: "status" });
  const file = ["errors.csv", "worst_errors.csv"].find(address); // an earlier release wrote only the worst
  let errors = null; // loaded when they are first needed
  const cell = (n, i, j, text) => button(text, async () => {
    try {
      errors ??= file ? await read(file) : [];
      await show(details, [classes[i], classes[j], n], errors, file === "errors.csv");
    } catch (problem) {
      showProblem(problem);
    }
  }, { className: "link", ariaLabel: `${plural(n, "picture")} of ${classes[i]} answered as ${classes[j]}` });
  const counts = rows.map(([, ...row]) => row.map(Number));
  return el("section.confusions", { ariaLabel: "Confusions" },
    el("h3", "Look at the confused pictures"),
    (classes.length <= MOST ? matrix : pairs)(classes, counts, cell), details);
}

function matrix(classes, counts, cell) {
  return table("Confusion matrix: true classes in rows, answers in columns", ["", ...classes],
    counts.map((row, i) => [classes[i], ...row.map((n, j) => (n && i !== j ? cell(n, i, j, n) : n))]));
}

function pairs(classes, counts, cell) {
  const all = counts.flatMap((row, i) => row.map((n, j) => [n, i, j])).filter(([n, i, j]) => n && i !== j);
  return el("ol", ...all.sort(([a], [b]) => b - a).slice(0, MOST).map(([n, i, j]) =>
    el("li", cell(n, i, j, `${classes[i]} answered as ${classes[j]}: ${n}`))));
}

/** Return the indexed picture that a report names, or null. An index of the whole data set has the folder in its keys. */
async function find(name) {
  for (const key of [name, `val/${name}`]) {
    const { images: [image] } = await requestJson(`v1/images${query({ prefix: key.slice(0, 200), order: "key", limit: 1 })}`);
    if (image?.key === key) return image;
  }
  return null;
}

/** Show the pictures of a cell, some at a time. */
async function show(node, [truth, answer, total], errors, all) {
  const named = errors.filter(([, label, , predicted]) => label === truth && predicted === answer);
  const where = `label:${JSON.stringify(truth)}`;
  const { images: [labelled] } = await requestJson(`v1/images${query({ where, limit: 1 })}`);
  const [list, missing] = [el("ul.neighbours"), el("p.help")];
  const [found, absent] = [[], []];
  let shown = 0;
  const more = button("", () => add().catch(showProblem), "small");
  const browse = button("Show these in Browse", () => {
    handover.chosen = found.map(itemOf);
    handover.where = "in the confusion matrix";
    go("#/browse?from=map");
  }, "small");

  async function add() {
    const part = named.slice(shown, shown + SHOWN);
    const images = await Promise.all(part.map(([name]) => find(name)));
    shown += part.length;
    for (const [i, one] of part.entries()) {
      if (images[i]) {
        found.push(images[i]);
        list.append(picture(images[i], one));
      } else absent.push(one[0]);
    }
    missing.textContent = absent.length ? `Not indexed, so that they cannot be shown: ${absent.slice(0, NAMES).join(", ")}${absent.length > NAMES ? ` and ${count(absent.length - NAMES)} more` : ""}.` : "";
    more.textContent = `Show ${count(Math.min(SHOWN, named.length - shown))} more`;
    more.hidden = shown >= named.length;
    browse.hidden = !found.length;
  }

  await add();
  const names = named.length === total ? "The report names all of them."
    : `The report names ${named.length || "none"} of them, among its ${all ? "20,000 " : ""}worst errors.${all ? "" : " Versions that a newer release exports name all of them."}`;
  node.replaceChildren(
    el("p", `${plural(total, "picture")} of ${truth} answered as ${answer}. ${names}`), list, missing, el("p.row", more, browse),
    labelled ? el("a", { href: `#/browse${query({ where })}` }, `Browse the indexed pictures with the label ${truth}`)
      : `No indexed picture has the label ${truth}.`);
}

function picture({ key, thumbnail }, [, , own, , predicted]) {
  const text = `${percent(Number(predicted))} for the answer, ${percent(Number(own))} for the true class`;
  const item = tile(key, thumbnail, `${key}, ${text}`, text);
  item.firstChild.onclick = () => openPicture(key);
  return item;
}
