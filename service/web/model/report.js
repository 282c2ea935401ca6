/** The pictures and tables of a version's report. */

import { button, el } from "../common/dom.js";
import { fileSize } from "../common/format.js";
import { request, requestJson } from "../common/server.js";
import { showPicture } from "../common/thumbnails.js";
import { confusion } from "./confusion.js";

const FIGURES = {
  "conv1.png": ["What the first layer looks for", "The 96 kernels of conv1, as in figure 3 of the 2012 paper. Edges and colors show what it has learned to see; noise, that it needs more pictures or time."],
  "curves.png": ["How it learned", "Loss and error after each epoch."],
  "confusion.png": ["Which classes are confused", "Rows are the true classes, columns the answers. A perfect model has only the diagonal."],
  "reliability.png": ["Can its percentages be trusted?", "On the diagonal, answers with 80 % are right in 80 % of the cases."],
  "worst_errors.png": ["Its worst errors", "Validation pictures with the least probability for their true class."],
};
const ORDER = Object.keys(FIGURES);

/** Return the files of a report, and a function that returns the address of one of them, or null. */
async function filesOf({ name, version }, signal) {
  const path = `v1/models/${encodeURIComponent(name)}/${version}/report`;
  const { files } = await requestJson(path, { signal });
  const names = new Set(files.map((file) => file.name));
  const address = (file) => (names.has(file) ? `${path}/${encodeURIComponent(file)}` : null); // relative: a proxy may add a prefix
  const isPicture = ({ media_type: type }) => type.startsWith("image/");
  const rank = ({ name: file }) => (ORDER.includes(file) ? ORDER.indexOf(file) : ORDER.length);
  const pictures = files.filter(isPicture).sort((a, b) => rank(a) - rank(b));
  return { pictures, others: files.filter((file) => !isPicture(file)), address };
}

/** Return for each picture of a report a function that shows it, with the name of its version. */
export async function reportFigures(model, signal) {
  const { pictures, address } = await filesOf(model, signal);
  return new Map(pictures.map((file) => [file.name, (version) => figure(file, address(file.name), version)]));
}

/** Return the section with the report. */
export async function report(model, signal) {
  const { pictures, others, address } = await filesOf(model, signal);
  return el("section", { className: "report", ariaLabel: "Report" },
    el("h2", { textContent: "Report" }),
    pictures.length + others.length === 0 && el("p", { className: "help", textContent: "This version has no report. Training writes one; imported models have none." }),
    el("div", { className: "figures" }, ...pictures.map((file) => figure(file, address(file.name)))),
    await confusion(address, signal),
    others.length > 0 && el("p", { className: "row" }, el("span", { className: "help", textContent: "Tables to download:" }),
      ...others.map((file) => button(`${file.name} (${fileSize(file.size)})`, () => save(file, address(file.name)), { className: "small" }))));
}

function figure(file, address, version) {
  const [name, text] = FIGURES[file.name] ?? [file.name, ""];
  const title = version ? `${name}, ${version}` : name;
  const frame = el("button", { type: "button", className: "plot", ariaLabel: `Enlarge: ${title}` });
  frame.addEventListener("click", () => enlarge(frame, title));
  showPicture(frame, address, title, "This picture cannot be shown.");
  return el("figure", { className: `plot-${file.name.replace(/\W/g, "-")}` }, el("h3", { textContent: title }), frame,
    !version && text && el("figcaption", { textContent: text }));
}

function enlarge(frame, title) {
  const picture = frame.querySelector("img");
  if (!picture) return;
  const dialog = el("dialog", { className: "dialog enlarged", ariaLabel: title },
    el("img", { src: picture.currentSrc, alt: title }), button("Close", () => dialog.close(), { autofocus: true }));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
}

/** Download a file. A plain link would not send the API key. */
async function save(file, address) {
  const url = URL.createObjectURL(await (await request(address)).blob());
  el("a", { href: url, download: file.name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
