/** The view Model: the card of a version, its report, and the versions to activate. */

import { $, el } from "../common/dom.js";
import { clearProblems, showLoadProblem, showProblem } from "../common/notices.js";
import { requestJson, signals } from "../common/server.js";
import { card } from "./card.js";
import { compare } from "./compare.js";
import { report } from "./report.js";
import { versions } from "./versions.js";

const requests = signals();

async function show([name, version], other) {
  const signal = requests.next();
  if (!$("model-view").childElementCount) $("model-view").replaceChildren(el("p.help", "Loading …"));
  try {
    const { models } = await requestJson("v1/models", { signal });
    if (signal.aborted) return;
    const named = models.find((model) => model.name === name && String(model.version) === version);
    const model = named ?? models.find(({ serving }) => serving) ?? models.at(-1);
    if (!model) {
      $("model-view").replaceChildren(el("p.empty", "No model is published yet. Train one with ",
        el("code", "fc7 train DATA"), "."));
      return;
    }
    if (name && !named) showProblem(new Error(`There is no version ${name}:${version}. This is ${model.name}:${model.version}.`));
    document.title = `${model.name} version ${model.version} – fc7`;
    const reload = () => show([name, version], other);
    // First, so that nothing on the page moves when they arrive.
    const [figures, comparison] = await Promise.all([report(model, signal), compare(models, model, other, signal)]);
    if (signal.aborted) return;
    const chosen = document.activeElement?.id === "compare";
    $("model-view").replaceChildren(card(model), figures, versions(models, model, reload, signal), comparison);
    if (chosen) $("compare")?.focus({ preventScroll: true });
  } catch (problem) {
    if (!signal.aborted) showLoadProblem(problem, () => show([name, version], other));
  }
}

export const model = {
  async show(path, parameters, entered) {
    clearProblems();
    $("model-view").inert = entered; // what it showed before is replaced soon
    await show(path, parameters.get("with"));
    $("model-view").inert = false;
  },
  hide: requests.abort,
  forget: () => $("model-view").replaceChildren(),
};
