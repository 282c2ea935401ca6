/** The pictures and tables of a version's report. */

import { button, el, openDialog } from "../common/dom.js";
import { fileSize } from "../common/format.js";
import { requestJson, saveFile, versionPath } from "../common/server.js";
import { showPicture } from "../common/thumbnails.js";
import { confusion } from "./confusion.js";

const FIGURES = {
  "conv1.png": ["What the first layer looks for", "The 96 kernels of conv1, as in figure 3 of the 2012 paper. Edges and colors show what it has learned to see; noise, that it needs more pictures or time."],
  "curves.png": ["How it learned", "Loss and error after each epoch."],
  "confusion.png": ["Which classes are confused", "Rows are the true classes, columns the answers. A perfect model has only the diagonal."],
  "reliability.png": ["Can its percentages be trusted?", "On the diagonal, answers with 80 % are right in 80 % of the cases."],
  "worst_errors.png": ["Its worst errors", "Validation pictures with the least probability for their true class."],
};

/** Return the files of a report, and a function that returns the address of one of them, or null. */
async function filesOf(model, signal) {
  const path = `v1/models/${versionPath(model)}/report`;
  const { files } = await requestJson(path, { signal });
  const address = (file) => (files.some(({ name }) => name === file) ? `${path}/${encodeURIComponent(file)}` : null); // relative: a proxy may add a prefix
  const rank = ({ name }) => Object.keys(FIGURES).indexOf(name) + 1 || Infinity; // unknown ones last
  const { pictures = [], others = [] } = Object.groupBy(files, (file) => (file.media_type.startsWith("image/") ? "pictures" : "others"));
  return { pictures: pictures.sort((a, b) => rank(a) - rank(b)), others, address };
}

/** Return for each picture of a report a function that shows it, with the name of its version. */
export async function reportFigures(model, signal) {
  const { pictures, address } = await filesOf(model, signal);
  return new Map(pictures.map((file) => [file.name, (version) => figure(file, address(file.name), version)]));
}

/** Return the section with the report. */
export async function report(model, signal) {
  const { pictures, others, address } = await filesOf(model, signal);
  return el("section.report", { ariaLabel: "Report" },
    el("h2", "Report"),
    pictures.length + others.length === 0 && el("p.help", "This version has no report. Training writes one; imported models have none."),
    el("div.figures", ...pictures.map((file) => figure(file, address(file.name)))),
    await confusion(address, signal),
    others.length > 0 && el("p.row", el("span.help", "Tables to download:"),
      ...others.map((file) => button(`${file.name} (${fileSize(file.size)})`, () => saveFile(address(file.name), file.name), "small"))));
}

function figure(file, address, version) {
  const [name, text] = FIGURES[file.name] ?? [file.name, ""];
  const title = version ? `${name}, ${version}` : name;
  const frame = el("button.plot", { type: "button", ariaLabel: `Enlarge: ${title}`, onclick: () => enlarge(frame, title) });
  showPicture(frame, address, title, "This picture cannot be shown.");
  return el("figure", { className: `plot-${file.name.replace(/\W/g, "-")}` }, el("h3", title), frame,
    !version && text && el("figcaption", text));
}

function enlarge(frame, title) {
  const picture = frame.querySelector("img");
  if (!picture) return;
  const dialog = openDialog(title, el("img", { src: picture.currentSrc, alt: title }), button("Close", () => dialog.close(), { autofocus: true }));
  dialog.classList.add("enlarged");
  dialog.onclick = ({ target }) => { if (target === dialog) dialog.close(); };
}
