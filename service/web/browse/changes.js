/** Changes of the metadata of pictures: a field is set, or a tag is added or removed. Each knows how it is undone. */

import { imagePath, request, requestJson } from "../common/server.js";
import { pathOf } from "./where.js";

const KEYS = 1000; // of a request; the API's limit

const isObject = (value) => value?.constructor === Object;
const valueAt = (metadata, path) => path.reduce((value, name) => value?.[name], metadata);
const merged = (old, patch) => {
  if (!isObject(patch)) return patch ?? undefined;
  return { ...(isObject(old) ? old : {}), ...Object.fromEntries(Object.entries(patch).map(([name, value]) => [name, merged(old?.[name], value)])) };
};

/** Return the change that sets a field, or removes it (null), and `undoOf(items)`: the changes that undo it, with their items. */
export function setting(name, value) {
  const path = pathOf(name);
  const set = (to) => {
    const metadata = path.reduceRight((inner, part) => ({ [part]: inner }), to ?? null);
    return { body: { metadata }, edit: (old) => merged(old, metadata) };
  };
  return {
    ...set(value),
    undoOf: (items) => [...Map.groupBy(items, (item) => JSON.stringify(valueAt(item.metadata, path) ?? null))]
      .map(([old, group]) => [set(JSON.parse(old)), group]),
  };
}

/** Return the change that adds a tag, or removes it. The other tags of the pictures stay, also those that others add meanwhile. */
export function tagging(tag, on) {
  const change = (add) => ({
    body: { [add ? "add" : "remove"]: { tags: [tag] } },
    edit: (old) => ({ ...old, tags: [...[old.tags ?? []].flat().filter((each) => each !== tag), ...(add ? [tag] : [])] }),
  });
  return { ...change(on), undoOf: (items) => [[change(!on), items.filter(({ metadata }) => [metadata.tags].flat().includes(tag) !== on)]] };
}

/** Load the metadata of items of which only a part is known, so that a change of them can be undone. */
export async function complete(items) {
  for (const item of items) {
    if (item.partial) Object.assign(item, { metadata: (await requestJson(imagePath(item.key))).metadata, partial: false });
  }
}

/** Make a change; return the items that are changed, and the problem that stopped it, or null. */
export async function apply({ body, edit }, items) {
  const done = [];
  let problem = null;
  try {
    for (let i = 0; i < items.length; i += KEYS) {
      const part = items.slice(i, i + KEYS);
      await request("v1/images", { method: "PATCH", json: { keys: part.map(({ key }) => key), ...body } });
      for (const item of part) item.metadata = edit(item.metadata);
      done.push(...part);
    }
  } catch (error) {
    problem = error;
  }
  return { done, problem };
}
