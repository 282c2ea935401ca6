/**
 * The filter line: conditions of the API's `where` parameter, joined with "and".
 *
 * Out of scope: checking fields and values. The server does that and explains what is wrong.
 */

const PART = String.raw`(?:"(?:[^"\\]|\\.)*"|[\p{L}\p{N}_-]+)`;
const NAME = String.raw`${PART}(?:\.${PART})*`;
const CONDITION = new RegExp(String.raw`^\s*(${NAME})\s*(?::|=)\s*(.*)$`, "su");
const PATH = new RegExp(`^${NAME}$`, "u");
const PLAIN = /^\p{L}[\p{L}\p{N}_-]*(?: [\p{L}\p{N}_-]+)*$/u;

/** Split `text` at `separator`, the source of a regular expression, but not inside JSON strings. */
function split(text, separator) {
  const parts = [""];
  for (const [token, end] of text.matchAll(new RegExp(String.raw`"(?:[^"\\]|\\.)*"|(${separator})|.`, "gis"))) {
    if (end) parts.push("");
    else parts[parts.length - 1] += token;
  }
  return parts.map((part) => part.trim()).filter(Boolean);
}

/** Return the conditions of the filter line. */
export const conditionsOf = (line) => split(line, String.raw`\s+and\s+`);

export const lineOf = (conditions) => conditions.join(" and ");

/** Write a value as in a filter: quoted, unless it is a number, true, false or plain words. */
const written = (value) =>
  (typeof value !== "string" || (PLAIN.test(value) && !/^(?:true|false)$|\band\b/i.test(value)) ? String(value) : JSON.stringify(value));

/** Return the names in the name of a field, as in camera.model. Parts with special characters are JSON strings. */
export const pathOf = (field) => (PATH.test(field)
  ? [...field.matchAll(new RegExp(PART, "gu"))].map(([part]) => (part.startsWith('"') ? JSON.parse(part) : part)) : [field]);

/** Return the values that `conditions` accept for a field, as written, or null if none restricts it by value. */
export function valuesOf(conditions, field) {
  for (const condition of conditions) {
    const [, name, values] = CONDITION.exec(condition) ?? [];
    if (name === field) return split(values, ",");
  }
  return null;
}

const isWritten = (value) => (text) => text === written(value) || text === JSON.stringify(value);

export const accepts = (conditions, field, value) => (valuesOf(conditions, field) ?? []).some(isWritten(value));

/** Return `conditions` without those that restrict a field by value. */
export const without = (conditions, field) => conditions.filter((condition) => CONDITION.exec(condition)?.[1] !== field);

/** Accept one more value of a field, or no longer accept it. */
export function toggle(conditions, field, value) {
  const values = valuesOf(conditions, field) ?? [];
  const next = values.some(isWritten(value)) ? values.filter((text) => !isWritten(value)(text)) : [...values, written(value)];
  return [...without(conditions, field), ...(next.length ? [`${field}:${next.join(",")}`] : [])];
}
