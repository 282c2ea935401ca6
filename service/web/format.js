/** Formats numbers for the page. */

export const percent = (p) => (p > 0 && p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
export const distanceText = (d) => (d === 0 ? "0" : d >= 100 ? d.toFixed(0) : d.toPrecision(3));
export const fileSize = (n) => (n < 1e6 ? `${Math.ceil(n / 1e3)} KB` : `${(n / 1e6).toFixed(1)} MB`);
