/** Near-duplicates: each group in a row, the picture to keep first. The others can be deleted. */

import { $, announce, button, confirmed, el } from "../common/dom.js";
import { count, distanceText, fileSize, plural } from "../common/format.js";
import { showProblem } from "../common/notices.js";
import { imagePath, query, request, requestJson } from "../common/server.js";
import { showThumbnail } from "../common/thumbnails.js";
import { forEach } from "./actions.js";

const GROUPS = 100;

let view = null;

/** Show the groups of the pictures that match `where`; `changed` is called after some were deleted. */
export function showDuplicates(next) {
  view = next;
  load();
}

async function load() {
  const { where, signal } = view;
  const status = (text) => { $("near-status").textContent = text; };
  status("Comparing all pictures …");
  $("near-groups").replaceChildren();
  try {
    const { groups, note } = await requestJson(`v1/index/duplicates${query({ threshold: $("threshold").value, where, limit: GROUPS })}`, { signal });
    status(`${groups.length ? plural(groups.length, "group") : "No near-duplicates at this distance."} ${note}`);
    $("near-groups").replaceChildren(...groups.map(row));
  } catch (problem) {
    if (signal.aborted) return;
    status("");
    showProblem(problem, load);
  }
}

function row({ keep, others, size }) {
  const remove = button(`Delete the ${others.length > 1 ? `other ${count(others.length)}` : "other one"}`, async () => {
    if (!(await confirmed(`Delete ${plural(others.length, "picture")}?`, `${keep.key} stays. This cannot be undone.`, "Delete"))) return;
    node.inert = true;
    const { done } = await forEach(others, ({ key }) => request(imagePath(key), { method: "DELETE" }), () => {});
    announce(`${plural(done.length, "picture")} deleted.`);
    view.changed();
    if (done.length === others.length) node.remove();
    else load();
  }, { className: "small danger", ariaLabel: `Delete the near-duplicates of ${keep.key}` });
  const more = size - 1 - others.length;
  const node = el("li", {},
    el("ul", { className: "group" }, picture(keep, "✓ kept"), ...others.map((each) => picture(each, `distance ${distanceText(each.distance)}`))),
    el("p", { className: "row" }, remove, more > 0 && `${count(more)} more are not listed.`));
  return node;
}

function picture({ key, width, height, size }, text) {
  const thumb = el("span", { className: "thumb" });
  showThumbnail(thumb, key, true);
  return el("li", { className: "tile" }, thumb, el("strong", { textContent: text }), el("br"),
    el("a", { href: `#${encodeURIComponent(key)}`, textContent: key }), el("br"), `${width} × ${height}, ${fileSize(size)}`);
}

$("near-form").addEventListener("submit", (event) => {
  event.preventDefault();
  load();
});
