/** Near-duplicates: each group in a row, the picture to keep first. The others can be deleted. */

import { $, announce, button, confirmed, el } from "../common/dom.js";
import { count, distanceText, fileSize, plural } from "../common/format.js";
import { showProblem } from "../common/notices.js";
import { query, requestJson } from "../common/server.js";
import { thumbnail } from "../common/thumbnails.js";
import { deleteAll } from "./actions.js";

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
    const done = await deleteAll(others, () => {});
    announce(`${plural(done.length, "picture")} deleted.`);
    view.changed();
    if (done.length === others.length) node.remove();
    else load();
  }, { className: "small danger", ariaLabel: `Delete the near-duplicates of ${keep.key}` });
  const more = size - 1 - others.length;
  const node = el("li",
    el("ul.group", picture(keep, "✓ kept"), ...others.map((each) => picture(each, `distance ${distanceText(each.distance)}`))),
    el("p.row", remove, more > 0 && `${count(more)} more are not listed.`));
  return node;
}

function picture({ key, width, height, size }, text) {
  return el("li.tile", thumbnail(key), el("strong", text), el("br"),
    el("a", { href: `#${encodeURIComponent(key)}` }, key), el("br"), `${width} × ${height}, ${fileSize(size)}`);
}

$("near-form").onsubmit = (event) => {
  event.preventDefault();
  load();
};
