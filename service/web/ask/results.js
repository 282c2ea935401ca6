/** Requests that answer a question about a picture. */

import { imagePath, query, request, requestJson, requestTimed } from "../common/server.js";

const MOST = 24; // neighbours of each request: showing fewer or more of them needs no other request

const found = (answer, timing) => ({ ...answer.results[0], model: answer.model, mode: answer.mode, timing, answer });

/**
 * Ask about a file: one upload and one run for classes, novelty and neighbours.
 * If only the index cannot answer, `problem` says why, and the classes are still returned.
 */
export async function askFile(file, mode) {
  try {
    const { answer, timing } = await requestTimed(`v1/search${query({ k: MOST, mode, include: "classes,novelty" })}`, { body: file });
    return found(answer, timing);
  } catch (problem) {
    if (problem.status !== 409) throw problem;
    const { answer, timing } = await requestTimed("v1/classify", { body: file });
    return { ...found(answer, timing), neighbours: [], mode: "", problem };
  }
}

/** Ask about an indexed image. Its stored picture is classified; its stored vector is searched. */
export async function askKey(key, mode, signal) {
  const path = imagePath(key);
  const picture = request(`${path}/thumbnail`, { signal }).then((response) => response.blob());
  const classified = picture.then((body) => requestTimed("v1/classify", { body, signal }));
  classified.catch(() => {}); // reported below, unless another request fails first
  const [record, similar] = await Promise.all([
    requestJson(path, { signal }),
    requestTimed(`${path}/similar${query({ k: MOST, mode })}`, { signal }),
  ]);
  const neighbours = { ...found(similar.answer, similar.timing), record };
  try {
    const { answer, timing } = await classified;
    const { predictions, novelty } = answer.results[0];
    const total = Math.max(timing.total, similar.timing.total);
    return { ...neighbours, predictions, novelty, model: answer.model, timing: { ...timing, total }, blob: await picture };
  } catch (problem) {
    if (signal.aborted) throw problem;
    return { ...neighbours, predictions: [], novelty: null, blob: await picture.catch(() => null), problem };
  }
}

/** Return every class of a picture with its probability. `body`: its bytes. */
export async function askAllClasses(body, { name, version }) {
  const { models } = await requestJson("v1/models");
  const { classes } = models.find((model) => model.name === name && model.version === version);
  const answer = await requestJson(`v1/classify${query({ k: classes.length, model: `${name}:${version}` })}`, { body });
  return answer.results[0].predictions;
}
