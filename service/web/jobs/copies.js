/** Copies on the server's disk: snapshots of the index, and backups. Take, list, download and delete them. */

import { announce, button, confirmed, el } from "../common/dom.js";
import { fileSize, plural } from "../common/format.js";
import { asProblem, showLoadProblem } from "../common/notices.js";
import { request, requestJson } from "../common/server.js";

/** Return the section of the copies at `path`, and `load()`. `started`: called after a job was started to take one. */
function copies(path, what, command, started) {
  const all = path.split("/").at(-1); // "snapshots" or "backups"
  const one = all.slice(0, -1);
  const title = all[0].toUpperCase() + all.slice(1);
  const list = el("ul.taken", el("li.help", "Loading …"));
  const status = el("p", { role: "status" });
  const say = (textContent, className = "help") => Object.assign(status, { textContent, className });
  const take = button(`Take a ${one}`, () => change(async () => {
    await request(path, { method: "POST" });
    started?.();
  }, started ? "The backup was started." : "The snapshot was taken."), "small");
  const node = el("section.copies", { ariaLabel: title }, el("h2", title),
    el("p.help", `A ${one} is a copy of ${what}. Restore one with `, el("code", command), "."), el("p.row", take), status, list);

  async function change(work, words) {
    take.disabled = true;
    say("Working …");
    try {
      await work();
      say("");
      announce(words);
    } catch (error) {
      const problem = asProblem(error);
      say(`${problem.title}. ${problem.detail}`, "help alarm");
    }
    take.disabled = false;
    await load();
  }

  async function load() {
    try {
      const found = (await requestJson(path))[all];
      take.hidden = false;
      list.replaceChildren(...found.length ? found.reverse().map(row) : [el("li.help", `No ${all} yet.`)]);
    } catch (problem) {
      take.hidden = problem.status === 403;
      list.replaceChildren(el("li.help", take.hidden ? `Only keys with the scope admin can see and take ${all}.` : "They could not be read."));
      if (!take.hidden) showLoadProblem(problem, load);
    }
  }

  function row({ name, path: folder, created, images, versions, size }) {
    const when = new Date(created).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
    const address = `${path}/${encodeURIComponent(name)}`;
    const facts = [images === null ? "no pictures" : plural(images, "picture"), versions && plural(versions.length, "version"), fileSize(size)];
    const act = (text, work, className) => button(text, work, { className, ariaLabel: `${text} the ${one} of ${when}` });
    return el("li", el("strong", when), el("br"), facts.filter(Boolean).join(", "), el("br"), el("code.help", folder), el("p.row",
      act("Download", () => change(() => download(address), "The download starts."), "small"),
      act("Delete", async () => {
        if (!(await confirmed(`Delete the ${one} of ${when}?`, `${folder} is deleted from the server's disk. This cannot be undone.`, "Delete"))) return;
        await change(() => request(address, { method: "DELETE" }), `The ${one} was deleted.`);
        take.focus(); // the focused button was removed
      }, "small danger")));
  }
  return { node, load };
}

/** Download by the browser itself, which shows the progress and needs no memory. It sends no key, so a link is made. */
async function download(address) {
  const { token } = await requestJson(`${address}/link`, { method: "POST" });
  el("a", { href: `${address}?link=${token}`, download: "" }).click();
}

export const snapshots = () => copies("v1/index/snapshots", "the index", "fc7 index restore");
export const backups = (started) => copies("v1/backups", "the index and all models", "fc7 backup restore", started);
