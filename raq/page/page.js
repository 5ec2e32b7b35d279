"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const drawn = new Set();
  const token = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function layoutOf(figure) {
    const grid = { gridcolor: token("--line"), zerolinecolor: token("--line"), linecolor: token("--line") };
    const layout = {
      margin: { l: 64, r: 24, t: 12, b: 84 }, hovermode: "closest", legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
      ...figure.layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: token("--ink"), size: 12 },
      hoverlabel: { bgcolor: token("--card"), bordercolor: token("--line"), font: { color: token("--ink") } },
    };
    for (const axis of ["xaxis", "yaxis", "yaxis2"]) {
      if (axis !== "yaxis2" || figure.layout.yaxis2) {
        layout[axis] = { automargin: true, ...grid, ...(figure.layout[axis] || {}) };
      }
    }
    layout.shapes = (figure.layout.shapes || []).map((shape) => ({
      ...shape, line: { color: token("--soft"), width: 1, ...(shape.line || {}) },
    }));
    return layout;
  }

  function draw(element) {
    const figure = figures[element.dataset.figure];
    Plotly.react(element, figure.data, layoutOf(figure), { responsive: true, displaylogo: false, displayModeBar: false });
    drawn.add(element);
  }

  function drawVisible() {
    if (typeof Plotly === "undefined") return;
    for (const element of document.querySelectorAll(".plot")) {
      if (!drawn.has(element) && element.offsetParent !== null) draw(element);
    }
  }

  function setTheme(theme) {
    root.dataset.theme = theme;
    document.getElementById("theme").setAttribute("aria-pressed", String(theme === "dark"));
    drawn.forEach(draw);
  }

  function sortBy(heading) {
    const table = heading.closest("table"), body = table.tBodies[0];
    const at = [...heading.parentNode.children].indexOf(heading);
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[at];
      return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
    };
    const compare = (one, other) => {
      const a = key(one), b = key(other);
      if (a === "" || b === "") return (a === "") - (b === "");  // what is not known comes last
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return ascending ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  }

  document.getElementById("theme").addEventListener("click", () => {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  });
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => sortBy(button.closest("th")));
  }
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", drawVisible);
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
    drawVisible();
  });
  // Plotly is packed, so that the page is small enough for a mail
  async function unpack() {
    const base64 = document.getElementById("library").textContent;
    if (!base64) return;
    const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(plain).text();
    document.head.append(script);
  }

  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  unpack().then(() => {
    drawVisible();
    root.dataset.drawn = "yes";
  });
})();
