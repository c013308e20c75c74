// The page's scheme: as the system has it, or dark, or light, remembered in this browser.
// A classic script in the head, so that the first paint already has the right colours.
(() => {
  const choices = ["auto", "dark", "light"];
  let choice = "auto";
  try {
    choice = localStorage.getItem("tally-theme") ?? "auto";
  } catch {
    // A browser that keeps nothing for us still shows the page.
  }
  if (!choices.includes(choice)) choice = "auto";

  const apply = () => {
    const root = document.documentElement;
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${choice}`;
    document.dispatchEvent(new Event("schemechange"));
  };

  apply();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      choice = choices[(choices.indexOf(choice) + 1) % choices.length];
      try {
        localStorage.setItem("tally-theme", choice);
      } catch {
        // As above: the choice then lasts as long as the page.
      }
      apply();
    });
    apply();
  });
})();
