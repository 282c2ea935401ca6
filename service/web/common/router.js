/**
 * The views and their addresses, in the fragment: `#/browse?where=...`, `#/model/NAME/VERSION`; everything else is Ask.
 *
 * A fragment works below any path prefix, and reloading it needs nothing from the server. Keys of images are encoded, so
 * that one that starts with a slash is not mistaken for a view.
 */

const views = new Map(); // name -> {show(path, parameters), hide()}
const state = { current: null };

export const addView = (name, view) => views.set(name, view);
export const currentView = () => state.current;

/** Return the view, the parts of the path and the parameters of the current address. */
function parse() {
  const fragment = location.hash.slice(1);
  if (!fragment.startsWith("/")) return { name: "ask", path: [], parameters: new URLSearchParams() };
  const [path, parameters = ""] = fragment.split(/\?(.*)/s);
  const [, name, ...rest] = path.split("/");
  return {
    name: views.has(name) ? name : "ask",
    path: rest.filter(Boolean).map((part) => decode(part)),
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
  if (state.current && state.current !== name) views.get(state.current).hide();
  const changed = state.current !== name;
  state.current = name;
  for (const link of document.querySelectorAll("#views a[data-view]")) {
    if (link.dataset.view === name) link.ariaCurrent = "page";
    else link.removeAttribute("aria-current");
  }
  views.get(name).show(path, parameters, changed);
}

/** Go to a fragment. `replace`: do not add an entry to the browser's history. */
export function go(fragment, { replace = false, state: entry = null } = {}) {
  const address = location.pathname + location.search + fragment;
  if (replace) history.replaceState(entry, "", address);
  else history.pushState(entry, "", address);
  route();
}
