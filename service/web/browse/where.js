/**
 * The filter line: conditions of the API's `where` parameter, joined with "and".
 *
 * Out of scope: checking fields and values. The server does that and explains what is wrong.
 */

const PART = String.raw`(?:"(?:[^"\\]|\\.)*"|[\p{L}\p{N}_-]+)`;
const CONDITION = new RegExp(String.raw`^\s*(${PART}(?:\.${PART})*)\s*(?::|=)\s*(.*)$`, "su");
const PLAIN = /^\p{L}[\p{L}\p{N}_-]*(?: [\p{L}\p{N}_-]+)*$/u;

/** Split `text` at `separator`, a sticky regular expression, but not inside JSON strings. */
function split(text, separator) {
  const parts = [];
  let start = 0;
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] === '"') {
      const string = /"(?:[^"\\]|\\.)*"/y;
      string.lastIndex = i;
      if (string.test(text)) i = string.lastIndex - 1;
      continue;
    }
    separator.lastIndex = i;
    if (separator.test(text)) {
      parts.push(text.slice(start, i));
      start = separator.lastIndex;
      i = start - 1;
    }
  }
  return [...parts, text.slice(start)].map((part) => part.trim()).filter(Boolean);
}

/** Return the conditions of the filter line. */
export const conditionsOf = (line) => split(line, /\s+and\s+/iy);

export const lineOf = (conditions) => conditions.join(" and ");

/** Write a value as in a filter: quoted, unless it is a number, true, false or plain words. */
const written = (value) =>
  (typeof value !== "string" || (PLAIN.test(value) && !/^(?:true|false)$|\band\b/i.test(value)) ? String(value) : JSON.stringify(value));

/** Return the values that `conditions` accept for a field, as written, or null if none restricts it by value. */
export function valuesOf(conditions, field) {
  for (const condition of conditions) {
    const [, name, values] = CONDITION.exec(condition) ?? [];
    if (name === field) return split(values, /,/y);
  }
  return null;
}

export const accepts = (conditions, field, value) =>
  (valuesOf(conditions, field) ?? []).some((one) => one === written(value) || one === JSON.stringify(value));

/** Return `conditions` without those that restrict a field by value. */
export const without = (conditions, field) => conditions.filter((condition) => CONDITION.exec(condition)?.[1] !== field);

/** Accept one more value of a field, or no longer accept it. */
export function toggle(conditions, field, value) {
  const values = valuesOf(conditions, field) ?? [];
  const others = values.filter((one) => one !== written(value) && one !== JSON.stringify(value));
  const next = others.length < values.length ? others : [...values, written(value)];
  return next.length ? [...without(conditions, field), `${field}:${next.join(",")}`] : without(conditions, field);
}
