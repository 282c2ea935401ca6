/** The pictures without a label whose labels would teach most, as a list like that of pages.js. */

import { plural, roundPercent } from "../common/format.js";
import { query, requestJson } from "../common/server.js";

const MOST = 100; // to label before it is worth asking again

/** Return the list. `changed` is called when it is complete, `failed` with a problem. */
export function suggestions({ where }, changed, failed) {
  const controller = new AbortController();
  const list = { items: [], done: false, note: "" };
  let asked = false;

  async function load() {
    try {
      const answer = await requestJson(`v1/images/suggestions${query({ where, limit: MOST })}`, { signal: controller.signal });
      list.items.push(...answer.suggestions.map(({ key, text, labels }) => ({
        key, metadata: {}, stored: true, hint: text, proposed: labels[0]?.label ?? null,
        caption: labels.length ? `${labels[0].label}? ${roundPercent(labels[0].share)}` : "",
      })));
      list.note = noteOf(answer);
      list.done = true;
      changed();
    } catch (problem) {
      if (!controller.signal.aborted) failed(problem);
    }
  }

  return Object.assign(list, {
    need() {
      if (!asked) load();
      asked = true;
    },
    stop: () => controller.abort(),
  });
}

function noteOf({ labeled, unlabeled, suggestions: chosen, note }) {
  if (!unlabeled) return "Every picture has a label.";
  const counts = `${plural(labeled, "picture has", "pictures have")} a label, ${plural(unlabeled, "picture has", "pictures have")} none.`;
  const first = chosen.length < unlabeled ? `These ${chosen.length} would teach most.` : "The first ones would teach most.";
  return [counts, first, "Select pictures of the same kind, give them a label, and ask again.", note].filter(Boolean).join(" ");
}
