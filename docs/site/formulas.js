// Formulas are marked by pymdownx.arithmatex. MathJax is loaded only by pages that have some.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex" },
};
document.addEventListener("DOMContentLoaded", () => {
  if (!document.querySelector(".arithmatex")) return;
  const script = document.createElement("script");
  script.src = "https://cdn.jsdelivr.net/npm/mathjax@3.2.2/es5/tex-mml-chtml.js";
  document.head.append(script);
});
