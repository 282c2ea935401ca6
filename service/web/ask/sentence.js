/** The answer in plain words. */

import { percent, roundPercent } from "../common/format.js";

const UNCERTAIN = 0.5; // below this probability, the other classes together are more probable

/** Return how many of the neighbours with a label have this one, or null if none has a label. */
function agreement(neighbours, label) {
  const labelled = neighbours.filter(({ metadata }) => labelOf(metadata) !== null);
  if (!labelled.length) return null;
  return { agree: labelled.filter(({ metadata }) => labelOf(metadata) === label).length, of: labelled.length };
}

/** Return the label in the metadata of an image, or null. */
export function labelOf(metadata) {
  const label = metadata?.label;
  return label === undefined || label === null || typeof label === "object" ? null : String(label);
}

/** Return the answer as a sentence, such as "mono, defective, 81 %; 6 of 6 nearest agree". Unknown pictures come first. */
export function sentence({ predictions, neighbours, novelty }, shown) {
  const [best] = predictions;
  if (!best) return neighbours.length ? "Similar pictures" : "No answer";
  if (novelty?.unknown) return `Unlike anything this model knows. Its nearest class is ${best.label}, ${roundPercent(best.probability)}`;
  const near = agreement(neighbours.slice(0, shown), best.label);
  return `${best.label}, ${roundPercent(best.probability)}${near ? `; ${near.agree} of ${near.of} nearest agree` : ""}`;
}

/** Return a remark on how far to trust the answer: {text, alarm?}, or null. */
export function remark({ predictions, novelty, neighbours }, shown) {
  const [best, second] = predictions;
  if (novelty?.unknown) {
    return {
      alarm: true,
      text: "Do not rely on the class: the model was not trained on pictures like this one. "
        + `It differs more from the training pictures than ${percent(novelty.percentile / 100)} of the pictures the model was tested with.`,
    };
  }
  if (best && second && best.probability < UNCERTAIN) {
    return { text: `The model is not sure. The next best class is ${second.label}, ${roundPercent(second.probability)}.` };
  }
  const near = best && agreement(neighbours.slice(0, shown), best.label);
  if (near && near.agree * 2 < near.of) {
    return { text: "Most of the similar pictures have another label, so look at them before you rely on the class." };
  }
  return null;
}
