// Set the colour scheme before the page is painted: the one that was chosen here, else that of the system.
"use strict";
try {
  const scheme = localStorage.getItem("nextitem-theme");
  if (scheme === "light" || scheme === "dark") document.documentElement.dataset.theme = scheme;
} catch {
  // A browser may forbid storage; then the system decides.
}
