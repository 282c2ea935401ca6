/**
 * The views and their addresses, in the fragment: `#/browse?where=...`, `#/model/NAME/VERSION`; everything else is Ask.
 *
 * Guarantees: the scripts of a view are loaded when it is first opened. Until they are there, the view before stays.
 *
 * A fragment works below any path prefix, and reloading it needs nothing from the server. Keys of images are encoded, so
 * that one that starts with a slash is not mistaken for a view.
 */

import { showProblem } from "./notices.js";
import { Problem } from "./server.js";

const NAMES = ["ask", "browse", "map", "model", "jobs"]; // in the order of their sections
const views = new Map(); // those that are loaded: name -> {show(path, parameters, entered), hide(), forget(), key?(event), drop?(transfer)}
const state = { current: null, shown: null };

export const addView = (name, view) => views.set(name, view);
export const loadedViews = () => [...views.values()];
export const currentView = () => state.current;
export const shownView = () => views.get(state.shown);

/** Load a view. Its module exports it under its name. */
export async function loadView(name) {
  if (!views.has(name)) addView(name, (await import(`../${name}/${name}.js`))[name]);
}

/** Return the view, the parts of the path and the parameters of the current address. */
function parse() {
  const [path, parameters = ""] = location.hash.slice(1).split(/\?(.*)/s);
  const [key, name, ...rest] = path.split("/"); // the key of an image, or empty
  return {
    name: !key && NAMES.includes(name) ? name : "ask",
    path: rest.filter(Boolean).map(decode),
    parameters: new URLSearchParams(parameters),
  };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // an edited address with a stray %
  }
}

/** Show the view of the address: on load, on Back, and after the address was changed. */
export function route() {
  const { name, path, parameters } = parse();
  state.current = name;
  for (const link of document.querySelectorAll("#views a[data-view]")) {
    link.ariaCurrent = link.dataset.view === name ? "page" : null;
  }
  if (!views.has(name)) return void openLater(name);
  const entered = state.shown !== name;
  if (entered) shownView()?.hide();
  state.shown = name;
  for (const [i, section] of document.querySelectorAll("main > .view").entries()) section.hidden = NAMES[i] !== name;
  document.title = `${document.querySelector("main > .view:not([hidden])").ariaLabel} – fc7`;
  views.get(name).show(path, parameters, entered);
}

async function openLater(name) {
  try {
    await loadView(name);
    if (state.current === name) route(); // otherwise another view was chosen meanwhile
  } catch (error) {
    showProblem(new Problem(0, "This part of the page could not be loaded", String(error)), route);
  }
}

/** Ask about an indexed picture. */
export function openPicture(key) {
  go(`#${encodeURIComponent(key)}`);
  scrollTo({ top: 0 });
}

/** Go to a fragment. `replace`: do not add an entry to the browser's history. */
export function go(fragment, { replace = false, state: entry = null } = {}) {
  const address = location.pathname + location.search + fragment;
  history[replace ? "replaceState" : "pushState"](entry, "", address);
  route();
}
