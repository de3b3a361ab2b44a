// Formulas: arithmatex marks them, KaTeX draws them.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    renderMathInElement(element, {
      delimiters: [
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
      throwOnError: false,
    });
  }
  // what scrolls sideways can be reached by the keyboard
  for (const element of document.querySelectorAll(".katex-display, .md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
  }
});
