// Formulas by KaTeX, again after each page that Material loads by itself.
document.addEventListener("DOMContentLoaded", () => {
  document$.subscribe(({ body }) =>
    renderMathInElement(body, {
      delimiters: [
        { left: "\\[", right: "\\]", display: true },
        { left: "\\(", right: "\\)", display: false },
      ],
    }),
  );
});
