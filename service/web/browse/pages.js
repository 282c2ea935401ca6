/** The indexed pictures in one order and with one filter, fetched page by page as they are needed. */

import { query, requestJson } from "../common/server.js";

const FIRST = 200; // small, so that the first pictures appear soon
const NEXT = 1000; // the API's limit

/** Return a list that grows up to what `need` asked for. `changed` is called after each page, `failed` with a problem. */
export function pages({ where, order, seed }, changed, failed) {
  const controller = new AbortController();
  const list = { items: [], done: false };
  let [wanted, loading, cursor] = [0, false, null];

  async function load() {
    if (loading || list.done || list.items.length >= wanted) return;
    loading = true;
    const limit = cursor === null ? FIRST : NEXT;
    try {
      const page = await requestJson(`v1/images${query({ where, order, seed, limit, cursor })}`, { signal: controller.signal });
      for (const { key, metadata, thumbnail } of page.images) list.items.push({ key, metadata, stored: thumbnail !== null });
      cursor = page.next_cursor;
      list.done = cursor === null;
      loading = false;
      changed();
      load();
    } catch (problem) {
      loading = false;
      if (!controller.signal.aborted) failed(problem);
    }
  }

  return Object.assign(list, {
    need(count) {
      wanted = Math.max(wanted, count);
      load();
    },
    stop: () => controller.abort(),
  });
}
