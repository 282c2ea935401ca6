/** Formats numbers and dates for the page. A number and its % are never on different lines. */

export const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1\u00a0%" : `${(100 * p).toFixed(1)}\u00a0%`);
export const roundPercent = (p) => (p < 0.01 ? "less than 1\u00a0%" : `${Math.min(99, Math.round(100 * p))}\u00a0%`);
export const distanceText = (d) => (d === 0 ? "0" : d >= 100 ? d.toFixed(0) : d.toPrecision(3));
export const fileSize = (n) =>
  (n < 1e6 ? `${Math.ceil(n / 1e3)} KB` : n < 1e9 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e9).toFixed(1)} GB`);
export const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms)} ms`);
export const count = (n) => n.toLocaleString("en");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const day = (text) => new Date(text).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
