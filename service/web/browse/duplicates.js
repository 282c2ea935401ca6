/** Near-duplicates: each group in a row, the picture to keep first. The others can be deleted. */

import { announce, button, confirmed, el } from "../common/dom.js";
import { count, distanceText, fileSize, plural } from "../common/format.js";
import { showProblem } from "../common/notices.js";
import { imagePath, query, request, requestJson } from "../common/server.js";
import { showThumbnail } from "../common/thumbnails.js";
import { forEach } from "./actions.js";

const GROUPS = 100;
const state = { threshold: "1" };

/** Show the groups in `node`; `changed` is called after pictures were deleted. */
export async function showDuplicates(node, { where, changed, signal }) {
  const threshold = el("input", { id: "threshold", type: "number", min: 0, step: "any", value: state.threshold, required: true });
  const found = el("div", { role: "status" });
  const form = el("form", { className: "row note" }, el("label", { htmlFor: "threshold", textContent: "Largest distance" }), threshold,
    el("button", { className: "small", textContent: "Find" }), el("span", { textContent: "0 finds pictures that look the same to the model. Ask shows the distances of similar pictures." }));
  const groups = el("ol", { className: "groups" });
  node.replaceChildren(form, found, groups);

  async function load() {
    state.threshold = threshold.value;
    found.textContent = "Comparing all pictures …";
    groups.replaceChildren();
    try {
      const answer = await requestJson(`v1/index/duplicates${query({ threshold: state.threshold, where, limit: GROUPS })}`, { signal });
      found.textContent = [answer.groups.length ? plural(answer.groups.length, "group") : "No near-duplicates at this distance.", answer.note].join(" ");
      groups.replaceChildren(...answer.groups.map(row));
    } catch (problem) {
      found.textContent = "";
      if (!signal.aborted) showProblem(problem, load);
    }
  }

  function row({ keep, others, size }) {
    const remove = button(`Delete the ${count(others.length)} other${others.length > 1 ? "s" : ""}`, async () => {
      if (!(await confirmed(`Delete ${plural(others.length, "picture")}?`, `${keep.key} stays. This cannot be undone.`, "Delete"))) return;
      item.inert = true;
      const { done } = await forEach(others, ({ key }) => request(imagePath(key), { method: "DELETE" }), () => {});
      announce(`${plural(done.length, "picture")} deleted.`);
      changed();
      if (done.length === others.length) item.remove();
      else load();
    }, { className: "small danger", ariaLabel: `Delete the near-duplicates of ${keep.key}` });
    const more = size - 1 - others.length;
    const item = el("li", {}, el("ul", { className: "group" }, picture(keep, "✓ kept"), ...others.map((each) => picture(each, `distance ${distanceText(each.distance)}`))),
      el("p", { className: "row" }, remove, more > 0 && `${count(more)} more are not listed.`));
    return item;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    load();
  });
  await load();
}

function picture({ key, width, height, size }, text) {
  const thumb = el("span", { className: "thumb" });
  showThumbnail(thumb, key, true);
  return el("li", { className: "tile" }, thumb, el("strong", { textContent: text }), el("br"),
    el("a", { href: `#${encodeURIComponent(key)}`, textContent: key }), el("br"), `${width} × ${height}, ${fileSize(size)}`);
}
