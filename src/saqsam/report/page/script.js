"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  const section = document.getElementById("gallery");
  if (!section) return;
  const items = [...section.querySelectorAll(".gallery > li")];
  const [previous, next] = section.querySelectorAll(".turn button");
  const place = section.querySelector(".place");
  let shown = 0;
  const show = (number) => {
    shown = Math.min(items.length - 1, Math.max(0, number));
    items.forEach((item, index) => { item.hidden = index !== shown; });
    // A button that is really disabled loses the focus, and the arrow keys with it.
    previous.setAttribute("aria-disabled", shown === 0);
    next.setAttribute("aria-disabled", shown === items.length - 1);
    place.textContent = `${shown + 1} of ${items.length}`;
  };
  previous.addEventListener("click", () => show(shown - 1));
  next.addEventListener("click", () => show(shown + 1));
  section.addEventListener("keydown", (event) => {
    const goal = { ArrowLeft: shown - 1, ArrowRight: shown + 1, Home: 0, End: items.length - 1 }[event.key];
    if (goal === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    show(goal);
  });
  show(0);
})();
