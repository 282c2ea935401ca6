/** Helpers for the document. */

export const $ = (id) => document.getElementById(id);

/** Return a new element with properties and children. Strings become text, never markup. */
export function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
