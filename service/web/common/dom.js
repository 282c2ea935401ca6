/** Helpers for the document. */

export const $ = (id) => document.getElementById(id);

/**
 * Return a new element: its name, with classes after dots, then properties (optional), then children. `data`: its data
 * attributes. Strings become text, never markup; null, undefined and false are left out.
 */
export function el(tag, ...parts) {
  const [name, ...classes] = tag.split(".");
  const { data = {}, ...properties } = parts[0]?.constructor === Object ? parts.shift() : {};
  const node = Object.assign(document.createElement(name), properties);
  node.classList.add(...classes);
  Object.assign(node.dataset, data);
  node.append(...parts.filter((child) => (child ?? false) !== false));
  return node;
}

/** Return a button. `look`: its classes, or its properties. */
export const button = (text, onclick, look = {}) =>
  el("button", { type: "button", onclick, ...(typeof look === "string" ? { className: look } : look) }, text);

/** Return the options of a list. */
export const options = (values) => values.map((value) => el("option", { value }, value));

/** Return the filled part of a bar. */
export const fill = (share) => el("span.fill", { style: `width: ${100 * share}%` });

/** Return a name whose middle is cut if there is no room: the end, which tells similar names apart, stays. */
export function cutName(name) {
  const characters = [...name];
  const tail = characters.splice(Math.max(characters.length - 14, Math.ceil(characters.length / 2)));
  return el("span.cut.key", { title: name }, el("span.head", characters.join("")), el("span.tail", tail.join("")));
}

/** Tell screen readers something that has become visible. */
export function announce(text) {
  $("announcement").textContent = text;
}

/** Open a dialog, which is removed when it is closed. */
export function openDialog(title, ...children) {
  const dialog = el("dialog.dialog", { ariaLabel: title, onclose: () => dialog.remove() }, ...children);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Ask a question in a dialog. Resolves to whether the action was confirmed. */
export function confirmed(title, text, action) {
  return new Promise((resolve) => {
    const dialog = openDialog(title, el("h2", title), el("p", text),
      el("p.row",
        button("Cancel", () => dialog.close("")),
        button(action, () => dialog.close("yes"), "primary")));
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"));
  });
}
