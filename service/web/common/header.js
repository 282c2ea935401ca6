/** The name of the serving model, in the header. */

import { $ } from "./dom.js";
import { requestJson } from "./server.js";

/** Show the model that gave an answer. */
export function showModelName(model) {
  $("model").hidden = !model;
  $("model-name").textContent = model?.name ?? "";
  $("model-version").textContent = model ? `version ${model.version}` : "";
}

/** Show the model that answers now. Failures are reported by the requests of the view. */
export async function showActiveModel() {
  try {
    const { models } = await requestJson("v1/models");
    showModelName(models.find(({ serving }) => serving));
  } catch {
    showModelName(null);
  }
}
