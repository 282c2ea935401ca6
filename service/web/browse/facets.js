/** The metadata fields of the pictures, with the number of pictures for each value. Choosing one changes the filter. */

import { el } from "../common/dom.js";
import { count } from "../common/format.js";
import { query, requestJson } from "../common/server.js";
import { accepts, toggle, valuesOf, without } from "./where.js";

const VALUES = 12;
const OPEN = 4; // fields whose values are shown from the start

/** Return how many pictures match, and the fields. Other values of a filtered field are counted without its condition. */
export async function loadFacets(conditions, signal) {
  const all = await requestJson(`v1/index/fields${query({ where: conditions, limit: VALUES })}`, { signal });
  const fields = new Map(all.fields.map((field) => [field.name, field]));
  const filtered = [...fields.keys()].filter((name) => valuesOf(conditions, name) !== null);
  await Promise.all(filtered.map(async (field) => {
    const where = without(conditions, field);
    const answer = await requestJson(`v1/index/fields${query({ where, field, limit: VALUES })}`, { signal });
    if (answer.fields.length) fields.set(field, answer.fields[0]);
  }));
  return { images: all.images, fields: [...fields.values()] };
}

/** Show the fields in `node`; `changed` gets a function that changes conditions, which can be newer than these. */
export function showFacets(node, fields, conditions, changed) {
  const shown = fields.filter(({ values }) => values.length).sort((a, b) => (b.name === "label") - (a.name === "label"));
  node.replaceChildren(...shown.map(({ name, values, distinct }, i) => {
    const rest = distinct - values.length;
    const options = values.map(({ value, count: images }) => {
      const checked = accepts(conditions, name, value);
      const box = el("input", { type: "checkbox", checked, data: { facet: `${name}:${value}` } });
      box.addEventListener("change", () => changed((current) => toggle(current, name, value), box.dataset.facet));
      return el("li", {}, el("label", {}, box, el("span", { className: "value", textContent: value }),
        el("span", { className: "count", textContent: count(images) })));
    });
    return el("details", { open: i < OPEN || valuesOf(conditions, name) !== null }, el("summary", { textContent: name }),
      el("ul", {}, ...options),
      rest > 0 && el("p", { className: "help", textContent: `and ${count(rest)} more` }));
  }));
}
