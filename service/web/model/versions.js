/** The published versions: choose which one answers. */

import { announce, button, confirmed, el } from "../common/dom.js";
import { count, day, percent, plural } from "../common/format.js";
import { showActiveModel } from "../common/header.js";
import { asProblem } from "../common/notices.js";
import { query, request, requestJson } from "../common/server.js";

const POLL_MS = 2000;

/** Return the section with all versions. `reload` shows the view again after a change. */
export function versions(models, shown, reload, signal) {
  const status = el("div", { role: "status", className: "version-status" });
  const migration = el("p", { className: "help", role: "status" });
  const rows = [...models].sort((a, b) => b.created.localeCompare(a.created)).map((model) => row(model, shown, status, reload));
  const head = el("tr", {}, ...["Version", "Published", "Wrong best class", "Status", ""].map((textContent) =>
    textContent ? el("th", { scope: "col", textContent }) : el("td")));
  const back = button("Roll back to the previous version", () => rollBack(status, reload), { className: "small" });
  watchMigration(migration, signal);
  return el("section", { className: "versions", ariaLabel: "Versions" },
    el("h2", { textContent: "Versions" }),
    el("div", { className: "table", tabIndex: 0, role: "region", ariaLabel: "Published versions" },
      el("table", {}, el("caption", { className: "visually-hidden", textContent: "Published versions" }), el("thead", {}, head), el("tbody", {}, ...rows))),
    models.length > 1 && el("p", { className: "row" }, back), status, migration);
}

function row(model, shown, status, reload) {
  const { name, version, created, metrics, serving, active, loaded } = model;
  const state = serving ? "answers now" : active ? "active after the next start" : loaded ? "in memory" : "";
  const link = el("a", { href: `#/model/${encodeURIComponent(name)}/${version}`, textContent: `${name}:${version}` });
  link.dataset.view = "model";
  if (model === shown) link.ariaCurrent = "true";
  return el("tr", { className: model === shown ? "current" : "" },
    el("th", { scope: "row" }, link), el("td", { textContent: day(created) }),
    el("td", { textContent: typeof metrics.top1_error === "number" ? percent(metrics.top1_error) : "not measured" }),
    el("td", { textContent: state }),
    el("td", {}, !serving && button("Activate", () => activate(model, status, reload), { className: "small", ariaLabel: `Activate ${name}:${version}` })));
}

async function activate({ name, version }, status, reload, force = false) {
  if (!force && !(await confirmed(`Activate ${name}:${version}?`,
    "It then answers all requests. Searches switch to it when all pictures have been embedded again.", "Activate"))) return;
  const path = `v1/models/${encodeURIComponent(name)}/${version}/activate${query({ force: force ? "true" : "" })}`;
  await change(path, status, reload, () => activate({ name, version }, status, reload, true));
}

async function rollBack(status, reload) {
  if (!(await confirmed("Roll back?", "The version that was active before answers again.", "Roll back"))) return;
  await change("v1/models/rollback", status, reload, null);
}

async function change(path, status, reload, anyway) {
  status.replaceChildren(el("p", { textContent: "Loading and checking the version. The current one answers meanwhile …" }));
  try {
    const { model, seconds } = await (await request(path, { method: "POST" })).json();
    await Promise.all([showActiveModel(), reload()]);
    announce(`${model.name}:${model.version} answers now. The switch took ${seconds} seconds.`);
  } catch (error) {
    const { title, detail, type } = asProblem(error);
    const weak = anyway && type.endsWith(":no-better-than-baseline");
    status.replaceChildren(el("div", { className: "problem" }, el("h2", { textContent: title }), el("p", { textContent: detail }),
      weak && button("Activate it anyway", anyway, { className: "small" })));
  }
}

/** Show the progress while the index changes to another model. */
async function watchMigration(node, signal) {
  try {
    const { migration } = await requestJson("v1/index", { signal });
    if (!migration || migration.done + migration.skipped >= migration.total) {
      node.replaceChildren();
      return;
    }
    const { model, done, skipped, total, state, detail } = migration;
    const progress = el("progress", { value: done + skipped, max: total, ariaLabel: "Pictures embedded again" });
    node.replaceChildren(`Embedding the pictures again with ${model}: ${count(done)} of ${plural(total, "picture")} (${state}${detail ? `: ${detail}` : ""}). `, progress);
    if (!signal.aborted) setTimeout(() => signal.aborted || watchMigration(node, signal), POLL_MS);
  } catch {
    node.replaceChildren(); // the index is not available; other views say why
  }
}
