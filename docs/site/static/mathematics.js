// Render every formula of the page; `mathematics.py` wrote its TeX.
for (const place of document.querySelectorAll(".math")) {
  const displayMode = place.tagName === "DIV";
  katex.render(place.textContent, place, { displayMode, throwOnError: false });
}
