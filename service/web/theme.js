/**
 * The theme: light, dark, or that of the system.
 *
 * A classic script in the head, because a module would run after the first paint, which would be in the wrong theme.
 */

(() => {
  const ITEM = "fc7.theme";
  const stored = () => {
    try {
      return localStorage.getItem(ITEM);
    } catch {
      return null; // storage is disabled
    }
  };
  const { dataset } = document.documentElement;
  const apply = () => { dataset.theme = ["light", "dark"].find((theme) => theme === stored()) ?? "system"; };
  apply();
  addEventListener("storage", apply); // changed in another tab
  addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    if (!select) return;
    select.value = dataset.theme;
    select.onchange = () => {
      try {
        localStorage.setItem(ITEM, select.value);
      } catch {
        // The choice applies until the page is closed.
      }
      dataset.theme = select.value;
    };
  });
})();
