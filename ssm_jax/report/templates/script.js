"use strict";
(() => {
  const root = document.documentElement;
  const dark = () =>
    root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = document.getElementById("theme");
  const show = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    show();
  });
  show();
  const fold = document.getElementById("fold");
  const all = () => [...document.querySelectorAll("details")];
  fold.hidden = !all().length;
  fold.addEventListener("click", () => {
    const open = all().some((details) => !details.open);
    for (const details of all()) details.open = open;
    fold.textContent = open ? "Fold all" : "Unfold all";
  });
  // A printed page shows what is folded on the screen.
  window.addEventListener("beforeprint", () => { for (const d of all()) d.open = true; });
})();
