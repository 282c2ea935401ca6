/** Takes a snapshot of the index. */

import { announce, button, el } from "../common/dom.js";
import { count, fileSize } from "../common/format.js";
import { asProblem } from "../common/notices.js";
import { requestJson } from "../common/server.js";

/** Return the section. */
export function snapshots() {
  const list = el("ul", { className: "taken" });
  const status = el("p", { className: "help", role: "status" });
  const take = button("Take a snapshot", async () => {
    take.disabled = true;
    status.className = "help";
    status.textContent = "Copying the index …";
    try {
      const { name, path, images, size } = await requestJson("v1/index/snapshot", { method: "POST" });
      status.textContent = "";
      list.append(el("li", {}, el("code", { textContent: path }), ` ${count(images)} pictures, ${fileSize(size)}`));
      announce(`Snapshot ${name} taken.`);
    } catch (error) {
      const { title, detail } = asProblem(error);
      status.className = "help alarm";
      status.textContent = `${title}. ${detail}`;
    }
    take.disabled = false;
  }, { className: "small" });
  return el("section", { className: "snapshots", ariaLabel: "Snapshots" }, el("h2", { textContent: "Snapshots" }),
    el("p", { className: "help" }, "A snapshot is a copy of the index in the server's folder. Restore one with ",
      el("code", { textContent: "fc7 index restore" }), "."),
    el("p", { className: "row" }, take), status, list);
}
