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
    const options = values.map(({ value, count: images }) => {
      const checked = accepts(conditions, name, value);
      const facet = `${name}:${value}`;
      const onchange = () => changed((current) => toggle(current, name, value), facet);
      return el("li", el("label", el("input", { type: "checkbox", checked, onchange, data: { facet } }),
        el("span.value", String(value)), el("span.count", count(images))));
    });
    return el("details", { open: i < OPEN || valuesOf(conditions, name) !== null }, el("summary", name),
      el("ul", ...options),
      distinct > values.length && el("p.help", `and ${count(distinct - values.length)} more`));
  }));
}
