/** Adds dropped folders, pictures and archives to the index. The path, from the name of the folder on, is the key. */

import { $, announce, el } from "../common/dom.js";
import { plural } from "../common/format.js";
import { asProblem, showProblem } from "../common/notices.js";
import { imagePath, request } from "../common/server.js";
import { forEach } from "./actions.js";

const ARCHIVE = /\.(zip|tar|tgz|tbz2|tar\.gz|tar\.bz2)$/i;
const PICTURE = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf])$/i;
const GENERAL = new Set([-1, 0, 401, 403, 429, 503, 507]); // the next picture would fail for the same reason

/** Yield [key, file] of everything in an entry of a drop; hidden files are left out. */
async function* filesIn(entry) {
  if (entry.name.startsWith(".")) return;
  if (entry.isFile) {
    yield [entry.fullPath.slice(1), await new Promise((done, failed) => entry.file(done, failed))];
    return;
  }
  const reader = entry.createReader();
  const read = () => new Promise((done, failed) => reader.readEntries(done, failed));
  for (let some = await read(); some.length; some = await read()) for (const one of some) yield* filesIn(one);
}

/** Add what was dropped; `changed` is called when pictures were added. */
export async function addDropped({ items }, changed) {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean); // `items` is empty after the event
  const bar = el("progress", { ariaLabel: "Progress of adding pictures" });
  const words = el("span", { role: "status" }, "Reading the files …");
  $("adding").replaceChildren(bar, words);
  $("adding").hidden = false;
  const [files, skipped] = [[], []];
  let [added, jobs] = [0, 0];
  try {
    for (const entry of entries) for await (const pair of filesIn(entry)) files.push(pair);
    const pictures = files.filter(([key]) => PICTURE.test(key));
    for (const [, file] of files.filter(([key]) => ARCHIVE.test(key))) {
      await request("v1/jobs", { body: file });
      jobs += 1;
    }
    await forEach(pictures, async ([key, file]) => {
      try {
        await request(imagePath(key), { method: "PUT", body: file });
        added += 1;
      } catch (problem) {
        if (GENERAL.has(asProblem(problem).status)) throw problem;
        skipped.push(`${key}: ${problem.detail}`);
      }
    }, (n) => {
      Object.assign(bar, { max: pictures.length, value: n });
      words.textContent = `${n} of ${plural(pictures.length, "picture")}`;
    });
    skipped.push(...files.filter(([key]) => !PICTURE.test(key) && !ARCHIVE.test(key)).map(([key]) => `${key} is not a picture.`));
  } catch (problem) {
    showProblem(problem);
  }
  bar.remove();
  words.textContent = [`${plural(added, "picture")} added.`, ...skipped.slice(0, 5)].join(" ");
  if (skipped.length > 5) words.append(` ${skipped.length} in total were left out.`);
  if (jobs) words.append(" The archive is added in the background: ", el("a", { href: "#/jobs" }, "Jobs"));
  announce(words.textContent);
  if (added) changed();
}
