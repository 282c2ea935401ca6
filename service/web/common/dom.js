/** Helpers for the document. */

export const $ = (id) => document.getElementById(id);

/** Return a new element with properties and children. `data`: its data attributes. Strings become text, never markup. */
export function el(tag, properties = {}, ...children) {
  const { data = {}, ...others } = properties;
  const node = Object.assign(document.createElement(tag), others);
  Object.assign(node.dataset, data);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const button = (text, onclick, properties = {}) =>
  el("button", { type: "button", textContent: text, onclick, ...properties });

/** Return a name whose middle is cut if there is no room: the end, which tells similar names apart, stays. */
export function cutName(name, className = "key") {
  const characters = [...name];
  const tail = Math.min(14, Math.floor(characters.length / 2));
  return el("span", { className: `cut ${className}`, title: name },
    el("span", { className: "head", textContent: characters.slice(0, characters.length - tail).join("") }),
    el("span", { className: "tail", textContent: characters.slice(characters.length - tail).join("") }));
}

/** Tell screen readers something that has become visible. */
export function announce(text) {
  $("announcement").textContent = text;
}

/** Ask a question in a dialog. Resolves to whether the action was confirmed. */
export function confirmed(title, text, action) {
  return new Promise((resolve) => {
    const dialog = el("dialog", { className: "dialog", ariaLabel: title },
      el("h2", { textContent: title }), el("p", { textContent: text }),
      el("p", { className: "row" },
        button("Cancel", () => dialog.close("")),
        button(action, () => dialog.close("yes"), { className: "primary" })));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
