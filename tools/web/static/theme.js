// Before the page is shown, so that it does not flash in the other theme.
(() => {
  const root = document.documentElement;
  const chosen = localStorage.getItem("spatext-theme");
  if (chosen) root.dataset.theme = chosen;

  const tell = () => dispatchEvent(new Event("themechange"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
      localStorage.setItem("spatext-theme", root.dataset.theme);
      tell();
    });
  });
})();
