/** Thumbnails for the canvas, loaded when they are first needed. */

import { imagePath, request } from "../common/server.js";

const MOST = 500; // in memory
const AT_ONCE = 6;

const loaded = new Map(); // key -> image, or null while it loads or if it has none
const waiting = [];
let running = 0;

/** Return the thumbnail of `key` if it is loaded. Otherwise load it and call `ready`. */
export function picture(key, ready) {
  if (loaded.has(key)) return loaded.get(key);
  loaded.set(key, null);
  if (loaded.size > MOST) loaded.delete(loaded.keys().next().value);
  waiting.push([key, ready]);
  work();
  return null;
}

async function work() {
  if (running >= AT_ONCE || !waiting.length) return;
  const [key, ready] = waiting.pop(); // the newest first: the others may be out of view by now
  running += 1;
  try {
    const blob = await (await request(`${imagePath(key)}/thumbnail`)).blob();
    loaded.set(key, await createImageBitmap(blob));
    ready();
  } catch {
    // Its point stays.
  }
  running -= 1;
  work();
}
