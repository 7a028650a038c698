// Draws the page's figures in the colours of the mode, again when it changes, and hides runs that are unticked.
const report = JSON.parse(document.getElementById("data").textContent);
const plots = (() => {
  const probe = document.body.appendChild(document.createElement("span")), drawn = new Map(), hidden = new Set();
  probe.hidden = true;
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const coarse = matchMedia("(pointer: coarse)").matches;
  const faint = (text, share) => text.replace(/^rgb\((.*)\)$/, `rgba($1, ${share})`);

  const themed = (figure) => {
    const { data, layout } = structuredClone(figure), ink = colour("ink"), line = colour("line");
    for (const trace of data) {
      const own = colour(trace.meta);
      trace.line = { ...trace.line, color: own };
      trace.marker = { ...trace.marker, color: own };
      if (trace.error_y) trace.error_y.color = own;
      if (trace.type === "box") trace.fillcolor = faint(own, 0.3);
      if (trace.type === "bar") trace.marker.line = { color: colour("card"), width: 1 };
      if (trace.meta.startsWith("run-")) trace.visible = !hidden.has(trace.customdata[0]);
    }
    Object.assign(layout, {
      font: { color: ink, family: "system-ui, sans-serif", size: 12 }, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", dragmode: coarse ? false : "zoom", uirevision: "kept",
      hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("soft"), font: { color: ink, family: "system-ui, sans-serif" }, align: "left", namelength: -1 },
    });
    for (const name of ["xaxis", "yaxis"]) {
      layout[name] = { ...layout[name], gridcolor: line, linecolor: line, zerolinecolor: colour("soft"), automargin: true };
    }
    return { data, layout };
  };

  const draw = (element, figure) => {
    drawn.set(element, figure);
    const { data, layout } = themed(figure);
    return Plotly.react(element, data, layout, { displayModeBar: false, responsive: true, scrollZoom: false });
  };
  const again = () => drawn.forEach((figure, element) => draw(element, figure));

  document.documentElement.addEventListener("theme", again);
  for (const box of document.querySelectorAll("input[data-run]")) {
    box.onchange = () => {
      hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
      again();
    };
  }
  for (const element of document.querySelectorAll("[data-figure]")) draw(element, report.figures[element.dataset.figure]);
  return { draw };
})();
