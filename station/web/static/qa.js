// QA's pages. Without this script all figures are there: it draws the control chart, walks the map by
// arrow keys, and keeps addresses as short as they can be.

// --- the address is the state --------------------------------------------------------------------

const form = document.querySelector("form[data-canonical]");
if (form) {
  const canonical = form.dataset.canonical;
  if (location.pathname + location.search !== canonical) {
    history.replaceState(history.state, "", canonical + location.hash);
  }
  form.addEventListener("submit", () => {
    for (const field of form.elements) field.disabled ||= field.value === "";
    // Whoever comes back finds the form as it was.
    setTimeout(() => { for (const field of form.elements) field.disabled = false; });
  });
}

// --- the control chart -----------------------------------------------------------------------------

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawMarks(chart, points) {
  const { ctx } = chart;
  const size = 4 * devicePixelRatio;
  const [first, last] = [chart.scales.x.min, chart.scales.x.max];
  ctx.save();
  points.forEach((point, n) => {
    if (n < first || n > last) return;
    const x = chart.valToPos(n, "x", true);
    const y = chart.valToPos(point.rate, "y", true);
    ctx.beginPath();
    if (point.is_out) {
      ctx.fillStyle = colour("--fail");
      ctx.rect(x - size, y - size, 2 * size, 2 * size);
    } else if (point.rules.length) {
      ctx.fillStyle = colour("--undecided");
      ctx.moveTo(x, y - 1.3 * size);
      ctx.lineTo(x + 1.3 * size, y + size);
      ctx.lineTo(x - 1.3 * size, y + size);
    } else {
      ctx.fillStyle = colour("--accent");
      ctx.arc(x, y, 0.7 * size, 0, 2 * Math.PI);
    }
    ctx.fill();
  });
  ctx.restore();
}

function chartOptions(place, found) {
  const { dataset } = place;
  const percent = dataset.which === "p";
  const digits = new Intl.NumberFormat(dataset.language, percent
    ? { style: "percent", maximumFractionDigits: 2 } : { maximumFractionDigits: 4 });
  const value = (_, v) => (v === null || v === undefined ? "–" : digits.format(v));
  const label = (n) => found.points[n]?.label ?? "";
  const limit = (text) => ({
    label: text, value, stroke: colour("--quiet"), dash: [6, 4], width: 1, points: { show: false },
    paths: uPlot.paths.stepped({ align: 0 }),
  });
  const axis = { stroke: colour("--ink"), grid: { stroke: colour("--hair"), width: 1 } };
  return {
    width: place.clientWidth || 640, height: 360,
    scales: { x: { time: false } },
    axes: [
      { ...axis, values: (_, ticks) => ticks.map((n) => (Number.isInteger(n) ? label(n) : "")), space: 110 },
      { ...axis, values: (_, ticks) => ticks.map((v) => digits.format(v)), size: 70 },
    ],
    series: [
      { label: dataset.point, value: (_, n) => label(n) || "–" },
      { label: dataset.rate, value, stroke: colour("--accent"), width: 1, points: { show: false } },
      limit(dataset.low),
      limit(dataset.high),
      { label: dataset.centre, value, stroke: colour("--quiet"), width: 1, points: { show: false } },
    ],
    hooks: { draw: [(chart) => drawMarks(chart, found.points)] },
  };
}

function drawChart(place, found) {
  const of = (name) => found.points.map((point) => point[name]);
  const data = [found.points.map((_, n) => n), of("rate"), of("low"), of("high"), found.points.map(() => found.centre)];
  place.replaceChildren();
  const chart = new uPlot(chartOptions(place, found), data, place);
  let pressedAt = 0;
  chart.over.addEventListener("mousedown", (event) => { pressedAt = event.clientX; });
  chart.over.addEventListener("click", (event) => {
    const point = found.points[chart.cursor.idx];
    if (point && Math.abs(event.clientX - pressedAt) < 4) location.assign(point.plates);
  });
  return chart;
}

async function showChart(place) {
  const answer = await fetch(place.dataset.source, { headers: { accept: "application/json" } });
  if (!answer.ok) return;
  const found = await answer.json();
  let chart = drawChart(place, found);
  // A canvas prints in the colours and the width of the screen; this is drawn for paper.
  const paper = new Image();
  paper.className = "qa-drawn qa-printed";
  paper.alt = "";
  paper.src = place.dataset.source.replace("/chart.json", "/chart.svg");
  place.after(paper);
  new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: 360 })).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { chart = drawChart(place, found); });
}

const chartPlace = document.querySelector(".qa-chart");
if (chartPlace && window.uPlot) showChart(chartPlace);

// --- the map of the plate ----------------------------------------------------------------------------

const plate = document.querySelector("svg[data-cells]");
if (plate) {
  const cells = [...plate.querySelectorAll("a")];
  const readout = document.querySelector("[data-readout]");
  const place = (cell) => [Number(cell.dataset.x), Number(cell.dataset.y)];
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const say = (cell) => { readout.textContent = cell.getAttribute("aria-label"); };
  const only = (chosen) => cells.forEach((cell) => cell.setAttribute("tabindex", cell === chosen ? "0" : "-1"));
  const next = (from, [dx, dy]) => {
    const [x, y] = place(from);
    let best = null;
    for (const cell of cells) {
      const [cx, cy] = place(cell);
      const along = (cx - x) * dx + (cy - y) * dy;
      const beside = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
      if (along > 0 && (!best || along + 3 * beside < best.far)) best = { cell, far: along + 3 * beside };
    }
    return best?.cell ?? from;
  };
  if (cells.length) only(cells[0]);
  plate.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const here = event.target.closest("a");
    if (!step || !here) return;
    event.preventDefault();
    const cell = next(here, step);
    only(cell);
    cell.focus();
  });
  for (const happens of ["focusin", "mouseover"]) {
    plate.addEventListener(happens, (event) => {
      const cell = event.target.closest("a");
      if (cell) say(cell);
    });
  }
}
