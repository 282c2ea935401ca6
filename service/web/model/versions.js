/** The published versions: choose which one answers. */

import { announce, button, confirmed, el } from "../common/dom.js";
import { count, day, percent, plural } from "../common/format.js";
import { showActiveModel } from "../common/header.js";
import { asProblem } from "../common/notices.js";
import { requestJson, versionLink, versionPath } from "../common/server.js";
import { isNumber, statusOf, table } from "./card.js";

const POLL_MS = 2000;

/** Return the section with all versions. `reload` shows the view again after a change. */
export function versions(models, shown, reload, signal) {
  const status = el("div.version-status", { role: "status" });
  const migration = el("p.help", { role: "status" });

  async function change(path, anyway) {
    status.replaceChildren(el("p", "Loading and checking the version. The current one answers meanwhile …"));
    try {
      const { model, seconds } = await requestJson(path, { method: "POST" });
      await Promise.all([showActiveModel(), reload()]);
      announce(`${model.name}:${model.version} answers now. The switch took ${seconds} seconds.`);
    } catch (error) {
      const { title, detail, type } = asProblem(error);
      const weak = anyway && type.endsWith(":no-better-than-baseline");
      status.replaceChildren(el("div.problem", el("h2", title), el("p", detail),
        weak && button("Activate it anyway", anyway, "small")));
    }
  }

  async function activate(model) {
    if (!(await confirmed(`Activate ${model.name}:${model.version}?`,
      "It then answers all requests. Searches switch to it when all pictures have been embedded again.", "Activate"))) return;
    const path = `v1/models/${versionPath(model)}/activate`;
    await change(path, () => change(`${path}?force=true`));
  }

  async function rollBack() {
    if (!(await confirmed("Roll back?", "The version that was active before answers again.", "Roll back"))) return;
    await change("v1/models/rollback");
  }

  const rows = [...models].sort((a, b) => b.created.localeCompare(a.created)).map((model) => {
    const { name, version, created, metrics, serving, loaded } = model;
    const state = statusOf(model) || (loaded ? "in memory" : "");
    const link = versionLink(model);
    if (model === shown) link.ariaCurrent = "true";
    return [link, day(created), isNumber(metrics.top1_error) ? percent(metrics.top1_error) : "not measured", state,
      serving ? "" : button("Activate", () => activate(model), { className: "small", ariaLabel: `Activate ${name}:${version}` })];
  });
  watchMigration(migration, signal);
  return el("section.versions", { ariaLabel: "Versions" },
    el("h2", "Versions"),
    table("Published versions", ["Version", "Published", "Wrong best class", "Status", ""], rows),
    models.length > 1 && el("p.row", button("Roll back to the previous version", rollBack, "small")), status, migration);
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
    setTimeout(() => signal.aborted || watchMigration(node, signal), POLL_MS);
  } catch {
    node.replaceChildren(); // the index is not available; other views say why
  }
}
