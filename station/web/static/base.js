// A choice in the header is sent at once; without script its button sends it.
for (const select of document.querySelectorAll("select[data-sends]")) {
  select.form.classList.add("sends");
  select.addEventListener("change", () => select.form.requestSubmit());
}

// What is wider than the screen is moved by the keyboard's arrows too.
function reachScrolled() {
  for (const region of document.querySelectorAll(".scroll")) {
    region.toggleAttribute("tabindex", region.scrollWidth > region.clientWidth);
    if (region.hasAttribute("tabindex")) region.tabIndex = 0;
  }
}
reachScrolled();
addEventListener("resize", reachScrolled);
document.addEventListener("htmx:afterSettle", reachScrolled);
