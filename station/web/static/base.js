// A choice in the header is sent at once; without script its button sends it.
for (const select of document.querySelectorAll("select[data-sends]")) {
  select.form.classList.add("sends");
  select.addEventListener("change", () => select.form.requestSubmit());
}
