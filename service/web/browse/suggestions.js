/** The pictures without a label whose labels would teach most, as a list like that of pages.js. */

import { plural, roundPercent } from "../common/format.js";
import { query, requestJson } from "../common/server.js";

const MOST = 100; // to label before it is worth asking again

/** Return the list. `changed` is called when it is complete, `failed` with a problem. */
export function suggestions({ where, signal }, changed, failed) {
  const list = { items: [], done: false, note: "" };
  let asked = null;

  async function load() {
    try {
      const answer = await requestJson(`v1/images/suggestions${query({ where, limit: MOST })}`, { signal });
      list.items.push(...answer.suggestions.map(({ key, text, labels }) => ({
        key, metadata: {}, partial: true, stored: true, hint: text, proposed: labels[0]?.label ?? null,
        caption: labels.length ? `${labels[0].label}? ${roundPercent(labels[0].share)}` : "",
      })));
      list.note = noteOf(answer);
      list.done = true;
      changed();
    } catch (problem) {
      failed(problem);
    }
  }

  return Object.assign(list, {
    need() {
      asked ??= load();
    },
  });
}

function noteOf({ labeled, unlabeled, suggestions: chosen, note }) {
  if (!unlabeled) return "Every picture has a label.";
  const have = (n) => plural(n, "picture has", "pictures have");
  const counts = `${have(labeled)} a label, ${have(unlabeled)} none.`;
  const first = `${chosen.length < unlabeled ? `These ${chosen.length}` : "The first ones"} would teach most.`;
  return [counts, first, "Select pictures of the same kind, give them a label, and ask again.", note].filter(Boolean).join(" ");
}
