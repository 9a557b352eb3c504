// A formula within a line that is wider than its paragraph scrolls on a line of its own.
window.addEventListener("load", async () => {
  if (!window.MathJax) return;
  await MathJax.startup.promise;
  const mark = () => {
    for (const formula of document.querySelectorAll("mjx-container:not([display])")) {
      formula.classList.remove("wide");
      const room = formula.closest("p, li, dd, dt, td, th, h1, h2, h3, div").clientWidth;
      formula.classList.toggle("wide", formula.offsetWidth > room);
    }
  };
  mark();
  window.addEventListener("resize", mark);
});
