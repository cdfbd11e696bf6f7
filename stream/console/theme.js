// Light or dark, as chosen here before, else as the system says. It runs before
// anything is drawn.
const chosen = localStorage.getItem("theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
