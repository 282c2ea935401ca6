/**
 * The theme: light, dark, or that of the system.
 *
 * A classic script in the head, because a module would run after the first paint, which would be in the wrong theme.
 */

(() => {
  const ITEM = "fc7.theme";
  const THEMES = ["system", "light", "dark"];
  const stored = () => {
    try {
      return THEMES.includes(localStorage.getItem(ITEM)) ? localStorage.getItem(ITEM) : "system";
    } catch {
      return "system"; // storage is disabled
    }
  };
  const apply = () => { document.documentElement.dataset.theme = stored(); };
  apply();
  addEventListener("storage", apply); // changed in another tab
  addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    if (!select) return;
    select.value = stored();
    select.addEventListener("change", () => {
      try {
        localStorage.setItem(ITEM, select.value);
      } catch {
        // The choice applies until the page is closed.
      }
      document.documentElement.dataset.theme = select.value;
    });
  });
})();
