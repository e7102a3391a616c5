// Light, dark or as the system has it: chosen before the page is drawn, and remembered for it.
"use strict";
(() => {
  const KEY = "theme:" + location.pathname;
  const MEDIA = { system: "screen and (prefers-color-scheme: dark)", dark: "screen", light: "not all" };
  const ORDER = ["system", "light", "dark"];
  let theme = "system";
  // Files opened from a disk may have no storage; the choice then lasts as long as the page.
  try {
    const kept = localStorage.getItem(KEY);
    if (ORDER.includes(kept)) theme = kept;
  } catch { /* as without one */ }

  const show = () => {
    document.getElementById("dark").media = MEDIA[theme];
    document.documentElement.dataset.theme = theme;
  };
  show();

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => { button.textContent = `Theme: ${theme}`; };
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
      try {
        localStorage.setItem(KEY, theme);
      } catch { /* not remembered */ }
      show();
      name();
    });
    const contents = document.getElementById("contents");
    const narrow = matchMedia("(max-width: 63.99rem)");
    const fold = () => { contents.open = !narrow.matches; };
    fold();
    narrow.addEventListener("change", fold);
    contents.addEventListener("click", (event) => {
      if (narrow.matches && event.target.closest("a")) contents.open = false;
    });
  });
})();
