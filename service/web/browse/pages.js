/** The indexed pictures in one order and with one filter, fetched page by page as they are needed. */

import { itemOf } from "../common/handover.js";
import { query, requestJson } from "../common/server.js";

const FIRST = 200; // small, so that the first pictures appear soon
const NEXT = 1000; // the API's limit

/**
 * Return a list that grows up to what `need` asked for, until `signal` is aborted. `changed` is called after each page,
 * `failed` with a problem.
 */
export function pages({ where, order, seed, signal }, changed, failed) {
  const list = { items: [], done: false };
  let [wanted, loading, cursor] = [0, false, null];

  async function load() {
    if (loading) return;
    loading = true;
    try {
      while (!list.done && list.items.length < wanted) {
        const limit = cursor === null ? FIRST : NEXT;
        const page = await requestJson(`v1/images${query({ where, order, seed, limit, cursor })}`, { signal });
        list.items.push(...page.images.map(itemOf));
        cursor = page.next_cursor;
        list.done = cursor === null;
        changed();
      }
    } catch (problem) {
      failed(problem);
    }
    loading = false;
  }

  return Object.assign(list, {
    need(count) {
      wanted = Math.max(wanted, count);
      load();
    },
  });
}
