// Draws the formulas that pymdownx.arithmatex marks, \(inline\) and \[displayed\].
for (const element of document.querySelectorAll(".arithmatex")) {
  const maths = element.textContent.trim();
  katex.render(maths.slice(2, -2), element, {
    displayMode: maths.startsWith("\\["),
    throwOnError: false,
  });
}
