// Looks at one plate: zoom, defects, scores, contrast, measuring. Nothing here changes what is stored.

import { Tiles } from "./plate_tiles.js";

const MOST_SCALE = 32;
const KEY_PAN = 0.15;
const ZOOM_STEP = 1.5;
const SNAP_PX = 10;
const TAP_PX = 6;
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis

class Viewer {
  constructor(section) {
    this.section = section;
    this.texts = section.dataset;
    const number = (name) => (section.dataset[name] === undefined || section.dataset[name] === "" ? null : Number(section.dataset[name]));
    this.picture = {
      address: section.dataset.address, role: section.dataset.role, columns: number("columns"), rows: number("rows"),
      levels: number("levels"), tile: number("tile"), ratio: number("ratio"),
    };
    this.pitch = number("pitch");
    this.left = number("left");
    this.language = document.documentElement.lang;
    this.rows = [...document.querySelectorAll("tr[data-defect]")];
    this.defects = this.rows.map((row) => this.defectOf(row));
    this.chosen = number("chosen");
    this.window = { brightness: 0, contrast: 0, gamma: 0 };
    this.showsBoxes = true;
    this.heat = null;
    this.measure = null;
    this.pointers = new Map();
    this.build();
    this.tiles = new Tiles(this.picture, () => this.redraw());
    this.listen();
    this.fit();
    // Asked for in the address: looked at, once the stage has its size.
    if (new URLSearchParams(window.location.search).has("defect") && this.chosen !== null) this.lookAt(this.defects[this.chosen]);
  }

  defectOf(row) {
    const { ratio } = this.picture;
    const [x, y, w, h] = ["x", "y", "w", "h"].map((name) => Number(row.dataset[name]) / ratio);
    return { number: Number(row.dataset.defect), x, y, w, h, label: row.dataset.label };
  }

  build() {
    this.stage = this.section.querySelector(".plate-stage");
    this.stage.classList.add("is-live");
    this.stage.style.aspectRatio = `${this.picture.columns} / ${1.1 * this.picture.rows}`;
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-label", this.section.getAttribute("aria-label"));
    [this.canvas, this.overlay] = [0, 1].map(() => this.stage.appendChild(document.createElement("canvas")));
    this.overlay.className = "is-overlay";
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.marks = this.overlay.getContext("2d");
    for (const tools of this.section.querySelectorAll(".plate-tools")) tools.hidden = false;
    new ResizeObserver(() => this.resize()).observe(this.stage);
    this.resize();
  }

  resize() {
    const wasFitted = this.isFitted;
    this.density = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.width = Math.max(1, Math.round(this.stage.clientWidth * this.density));
      canvas.height = Math.max(1, Math.round(this.stage.clientHeight * this.density));
    }
    if (this.tiles) wasFitted ? this.fit() : this.redraw();
  }

  // --- where what lies: the canvas in device pixels, the picture in its own ---

  toPicture(x, y) {
    return { x: this.x + (x - this.canvas.width / 2) / this.scale, y: this.y + (y - this.canvas.height / 2) / this.scale };
  }

  toCanvas(x, y) {
    return { x: (x - this.x) * this.scale + this.canvas.width / 2, y: (y - this.y) * this.scale + this.canvas.height / 2 };
  }

  get fitScale() {
    return Math.min(this.canvas.width / this.picture.columns, this.canvas.height / this.picture.rows);
  }

  fit() {
    this.x = this.picture.columns / 2;
    this.y = this.picture.rows / 2;
    this.scale = this.fitScale;
    this.isFitted = true;
    this.redraw();
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const fixed = this.toPicture(x, y);
    const most = MOST_SCALE * this.density;
    this.scale = Math.min(most, Math.max(this.fitScale / 2, this.scale * factor));
    this.x = fixed.x - (x - this.canvas.width / 2) / this.scale;
    this.y = fixed.y - (y - this.canvas.height / 2) / this.scale;
    this.moved();
  }

  pan(dx, dy) {
    this.x -= dx / this.scale;
    this.y -= dy / this.scale;
    this.moved();
  }

  moved() {
    this.isFitted = false;
    this.x = Math.min(this.picture.columns, Math.max(0, this.x));
    this.y = Math.min(this.picture.rows, Math.max(0, this.y));
    this.redraw();
  }

  lookAt(box) {
    this.hasLooked = true;
    const room = 3 * Math.max(box.w, box.h, 48 / this.picture.ratio);
    this.x = box.x + box.w / 2;
    this.y = box.y + box.h / 2;
    this.scale = Math.min(8 * this.density, Math.min(this.canvas.width, this.canvas.height) / room);
    this.moved();
  }

  // --- drawing ---

  redraw() {
    if (this.isAsked) return;
    this.isAsked = true;
    requestAnimationFrame(() => {
      this.isAsked = false;
      this.draw();
    });
  }

  get level() {
    return Math.min(this.picture.levels - 1, Math.max(0, Math.floor(Math.log2(1 / this.scale))));
  }

  draw() {
    const { context, canvas } = this;
    context.fillStyle = "#404040";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = this.scale < 1;
    this.tiles.draw(context, this, this.level, canvas.width, canvas.height);
    this.drawMarks();
    this.sayFailures();
  }

  sayFailures() {
    const said = this.section.querySelector('[data-out="says"]').textContent;
    if (this.tiles.isBroken) this.say("says", this.texts.textFailed);
    else if (said === this.texts.textFailed) this.say("says", "");
  }

  drawMarks() {
    const { marks, overlay } = this;
    marks.clearRect(0, 0, overlay.width, overlay.height);
    if (this.heat && this.heat.isShown) this.drawHeat();
    if (this.showsBoxes) for (const defect of this.defects) this.drawDefect(defect);
    if (this.pitch) this.drawScale();
    if (this.measure) this.drawMeasure();
  }

  // Twice, light on dark: seen on any plate, without colour.
  stroke(path, width, isDashed = false) {
    const { marks, density } = this;
    marks.setLineDash([]);
    marks.lineWidth = (width + 2) * density;
    marks.strokeStyle = "#000";
    marks.stroke(path);
    marks.setLineDash(isDashed ? [6 * density, 4 * density] : []);
    marks.lineWidth = width * density;
    marks.strokeStyle = "#ffe14d";
    marks.stroke(path);
    marks.setLineDash([]);
  }

  write(text, x, y) {
    const { marks, density } = this;
    marks.font = `600 ${14 * density}px system-ui, sans-serif`;
    x = Math.max(4 * density, Math.min(x, this.overlay.width - marks.measureText(text).width - 4 * density));
    marks.lineWidth = 4 * density;
    marks.strokeStyle = "#000";
    marks.strokeText(text, x, y);
    marks.fillStyle = "#fff";
    marks.fillText(text, x, y);
  }

  drawDefect(defect) {
    const start = this.toCanvas(defect.x, defect.y);
    const width = defect.w * this.scale;
    const height = defect.h * this.scale;
    if (start.x > this.overlay.width || start.y > this.overlay.height || start.x + width < 0 || start.y + height < 0) return;
    const path = new Path2D();
    path.rect(start.x, start.y, width, height);
    const isChosen = defect.number === this.chosen;
    this.stroke(path, isChosen ? 3 : 1.5, !isChosen);
    const isRoomy = isChosen || width > 90 * this.density;
    const text = isRoomy ? `${defect.number + 1} · ${defect.label}` : String(defect.number + 1);
    this.write(text, start.x, start.y - 6 * this.density < 14 * this.density ? start.y + height + 16 * this.density : start.y - 6 * this.density);
  }

  drawHeat() {
    const { heat, marks } = this;
    const start = this.toCanvas(heat.x, heat.y);
    const side = heat.step * this.scale;
    marks.globalAlpha = 0.5;
    marks.imageSmoothingEnabled = false;
    marks.drawImage(heat.cells, start.x, start.y, heat.cells.width * side, heat.cells.height * side);
    marks.globalAlpha = 1;
    for (const [column, row] of heat.failing) {
      const path = new Path2D();
      path.rect(start.x + column * side, start.y + row * side, side, side);
      this.stroke(path, 1);
    }
  }

  drawScale() {
    const mmPerPx = (this.pitch * this.picture.ratio) / this.scale;
    const wanted = 160 * this.density * mmPerPx;
    const power = 10 ** Math.floor(Math.log10(wanted));
    const mm = [5, 2, 1].map((step) => step * power).find((length) => length <= wanted);
    const width = mm / mmPerPx;
    const x = 16 * this.density;
    const y = this.overlay.height - 16 * this.density;
    const path = new Path2D();
    path.moveTo(x, y - 5 * this.density);
    path.lineTo(x, y);
    path.lineTo(x + width, y);
    path.lineTo(x + width, y - 5 * this.density);
    this.stroke(path, 2);
    this.write(`${this.figure(mm, mm < 1 ? 2 : 0)} mm`, x + 4 * this.density, y - 8 * this.density);
  }

  drawMeasure() {
    const { marks, density, measure } = this;
    const points = measure.points.map((one) => this.toCanvas(one.x, one.y));
    if (points.length === 2) {
      const path = new Path2D();
      path.moveTo(points[0].x, points[0].y);
      path.lineTo(points[1].x, points[1].y);
      this.stroke(path, 2);
    }
    for (const point of [...points, ...(measure.points.length < 2 ? [this.toCanvas(measure.at.x, measure.at.y)] : [])]) {
      const path = new Path2D();
      path.moveTo(point.x - 12 * density, point.y);
      path.lineTo(point.x + 12 * density, point.y);
      path.moveTo(point.x, point.y - 12 * density);
      path.lineTo(point.x, point.y + 12 * density);
      this.stroke(path, 1.5);
    }
    if (points.length === 2) this.write(this.lengthText(), (points[0].x + points[1].x) / 2 + 8 * density, (points[0].y + points[1].y) / 2);
    marks.setLineDash([]);
  }

  // --- words and figures ---

  figure(value, digits) {
    return new Intl.NumberFormat(this.language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
  }

  fill(text, values) {
    return text.replace(/\[(\w+)\]/g, (_, name) => values[name]);
  }

  say(name, text) {
    const out = this.section.querySelector(`[data-out="${name}"]`);
    if (out.textContent !== text) out.textContent = text;
  }

  inMm(point) {
    const { ratio } = this.picture;
    return { x: (point.x * ratio - this.left) * this.pitch, y: point.y * ratio * this.pitch };
  }

  sayPosition(point) {
    const isOn = point.x >= 0 && point.y >= 0 && point.x < this.picture.columns && point.y < this.picture.rows;
    if (!isOn) return this.say("position", "");
    const parts = [];
    if (this.pitch) {
      const mm = this.inMm(point);
      parts.push(this.fill(this.texts.textPosition, { x: this.figure(mm.x, 2), y: this.figure(mm.y, 2) }));
    }
    const { ratio } = this.picture;
    parts.push(`${Math.floor(point.x * ratio)}, ${Math.floor(point.y * ratio)} px`);
    const value = this.tiles.value(point.x, point.y, this.level);
    if (value) parts.push(this.fill(value.isExact && ratio === 1 ? this.texts.textGrey : this.texts.textMean, { grey: value.grey }));
    return this.say("position", parts.join(" · "));
  }

  lengths() {
    const [from, to] = this.measure.points.map((one) => this.inMm(one));
    return { dx: to.x - from.x, dy: to.y - from.y, length: Math.hypot(to.x - from.x, to.y - from.y) };
  }

  lengthText() {
    return `${this.figure(this.lengths().length, 2)} mm`;
  }

  sayMeasure() {
    if (!this.measure) return this.say("measure", "");
    if (this.measure.points.length < 2) return this.say("measure", this.measure.points.length ? this.texts.textSecond : this.texts.textFirst);
    const found = this.lengths();
    const values = Object.fromEntries(Object.entries(found).map(([name, mm]) => [name, this.figure(mm, 2)]));
    return this.say("measure", this.fill(this.texts.textMeasure, { ...values, px: this.figure(this.pitch * this.picture.ratio, 3) }));
  }

  // --- what people do ---

  listen() {
    this.stage.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave"]) this.stage.addEventListener(kind, (event) => this.onPointer(event));
    this.stage.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("keydown", (event) => this.onPageKey(event));
    this.section.addEventListener("click", (event) => this.onTool(event.target.closest("button[data-does]")));
    this.section.querySelector("select").addEventListener("change", (event) => this.look(event.target.value));
    for (const slider of this.section.querySelectorAll("[data-window]")) slider.addEventListener("input", () => this.setWindow({ [slider.dataset.window]: Number(slider.value) }));
    for (const row of this.rows) row.querySelector("a").addEventListener("click", (event) => this.onRow(event, Number(row.dataset.defect)));
  }

  onRow(event, number) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.choose(number);
    this.stage.scrollIntoView({ block: "nearest" });
  }

  onTool(button) {
    const does = button && button.dataset.does;
    const actions = {
      fit: () => this.fit(), whole: () => this.wholePixels(), closer: () => this.zoom(ZOOM_STEP), further: () => this.zoom(1 / ZOOM_STEP),
      next: () => this.step(1), previous: () => this.step(-1), boxes: () => this.toggleBoxes(), heat: () => this.toggleHeat(),
      measure: () => this.toggleMeasure(), reset: () => this.resetWindow(), stretch: () => this.stretch(),
    };
    if (actions[does]) actions[does]();
  }

  onWheel(event) {
    event.preventDefault();
    const at = this.place(event);
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015)), at.x, at.y);
  }

  place(event) {
    const box = this.stage.getBoundingClientRect();
    return { x: (event.clientX - box.left) * this.density, y: (event.clientY - box.top) * this.density };
  }

  onPointer(event) {
    const at = this.place(event);
    if (event.type === "pointerdown") this.onDown(event, at);
    else if (event.type === "pointermove") this.onMove(event, at);
    else this.onUp(event, at);
  }

  onDown(event, at) {
    this.stage.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, at);
    this.travel = this.pointers.size > 1 ? Infinity : 0;
    this.held = this.measure ? this.pointNear(at) : null;
  }

  onMove(event, at) {
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      if (this.measure && this.measure.points.length < 2) this.setCursor(this.toPicture(at.x, at.y));
      this.sayPosition(this.toPicture(at.x, at.y));
      return;
    }
    this.travel += Math.hypot(at.x - before.x, at.y - before.y);
    if (this.held !== null) this.movePoint(this.held, this.toPicture(at.x, at.y));
    else if (this.pointers.size === 1) this.pan(at.x - before.x, at.y - before.y);
    else this.pinch(event.pointerId, before, at);
    this.pointers.set(event.pointerId, at);
  }

  pinch(id, before, at) {
    const other = [...this.pointers].find(([one]) => one !== id)[1];
    const factor = Math.hypot(at.x - other.x, at.y - other.y) / Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
    this.zoom(factor, (at.x + other.x) / 2, (at.y + other.y) / 2);
    this.pan((at.x - before.x) / 2, (at.y - before.y) / 2);
  }

  onUp(event, at) {
    if (!this.pointers.delete(event.pointerId) || event.type !== "pointerup") return;
    const isTap = this.travel < TAP_PX * this.density && this.held === null;
    this.held = null;
    if (!isTap) return;
    const point = this.toPicture(at.x, at.y);
    this.sayPosition(point);
    if (this.measure) this.setPoint(point);
    else this.chooseAt(point);
  }

  onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target !== this.stage) return;
    const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const arrow = arrows[event.key];
    const keys = {
      "+": () => this.zoom(ZOOM_STEP), "=": () => this.zoom(ZOOM_STEP), "-": () => this.zoom(1 / ZOOM_STEP), 0: () => this.fit(), 1: () => this.wholePixels(),
      b: () => this.toggleBoxes(), h: () => this.toggleHeat(), m: () => this.toggleMeasure(), v: () => this.nextView(),
      Enter: () => this.measure && this.setPoint(this.measure.at), Escape: () => this.escape(),
    };
    if (arrow && this.measure) this.nudge(arrow, event.shiftKey ? 10 : 1);
    else if (arrow) this.pan(arrow[0] * KEY_PAN * this.canvas.width, arrow[1] * KEY_PAN * this.canvas.height);
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  onPageKey(event) {
    if (isTyped(event)) return;
    if (event.key === "n") this.step(1);
    if (event.key === "p") this.step(-1);
  }

  escape() {
    if (this.measure) this.toggleMeasure();
  }

  wholePixels() {
    this.scale = this.density;
    this.moved();
  }

  // --- defects ---

  step(by) {
    if (!this.defects.length) return;
    const now = this.chosen ?? 0;
    // The first step leads to the one that is chosen already and nobody has looked at.
    this.choose(this.hasLooked ? (now + by + this.defects.length) % this.defects.length : now);
  }

  chooseAt(point) {
    const inside = this.defects.filter((one) => point.x >= one.x && point.y >= one.y && point.x < one.x + one.w && point.y < one.y + one.h);
    inside.sort((a, b) => a.w * a.h - b.w * b.h);
    if (inside.length && this.showsBoxes) this.choose(inside[0].number, false);
  }

  choose(number, looks = true) {
    this.chosen = number;
    for (const row of this.rows) {
      if (Number(row.dataset.defect) === number) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    const defect = this.defects[number];
    if (looks) this.lookAt(defect);
    else this.redraw();
    this.say("says", this.fill(this.texts.textDefect, { n: number + 1, all: this.defects.length, label: defect.label }));
    const address = new URL(window.location);
    address.searchParams.set("defect", number);
    window.history.replaceState(null, "", address);
    this.loadPlace(number);
  }

  // Waits until nobody steps on: the strip is for the defect that is looked at.
  loadPlace(number) {
    clearTimeout(this.waiting);
    const target = document.getElementById("same-place");
    if (!target || !window.htmx) return;
    this.waiting = setTimeout(() => window.htmx.ajax("GET", `${this.picture.address}/same-place?defect=${number}`, { target, swap: "innerHTML" }), 250);
  }

  press(name, isOn) {
    const button = this.section.querySelector(`[data-does="${name}"]`);
    if (button) button.setAttribute("aria-pressed", String(isOn));
  }

  toggleBoxes() {
    this.showsBoxes = !this.showsBoxes;
    this.press("boxes", this.showsBoxes);
    this.redraw();
  }

  // --- scores of the tiles ---

  async toggleHeat() {
    if (!this.section.querySelector('[data-does="heat"]')) return;
    if (!this.heat) {
      const answer = await fetch(`${this.picture.address}/tile-scores`);
      if (!answer.ok) return this.say("says", this.texts.textFailed);
      this.heat = this.cellsOf(await answer.json());
    }
    this.heat.isShown = !this.heat.isShown;
    this.press("heat", this.heat.isShown);
    this.section.querySelector('[data-note="heat"]').hidden = !this.heat.isShown;
    this.redraw();
  }

  cellsOf(found) {
    const { ratio } = this.picture;
    const [x, y] = [Math.min(...found.x_px), Math.min(...found.y_px)];
    const cells = document.createElement("canvas");
    cells.width = 1 + Math.round((Math.max(...found.x_px) - x) / found.step_px);
    cells.height = 1 + Math.round((Math.max(...found.y_px) - y) / found.step_px);
    const context = cells.getContext("2d");
    const failing = [];
    found.score.forEach((score, place) => {
      const [column, row] = [Math.round((found.x_px[place] - x) / found.step_px), Math.round((found.y_px[place] - y) / found.step_px)];
      context.fillStyle = colourOf(Number.isFinite(score) ? score : 1);
      context.fillRect(column, row, 1, 1);
      if (!(score <= found.threshold)) failing.push([column, row]);
    });
    return { x: x / ratio, y: y / ratio, step: found.step_px / ratio, cells, failing, isShown: false };
  }

  // --- view and contrast ---

  look(view) {
    this.tiles.view = view;
    this.section.querySelector("select").value = view;
    this.noteChanges();
    this.redraw();
  }

  nextView() {
    const views = [...this.section.querySelectorAll("select option:not([disabled])")].map((option) => option.value);
    this.look(views[(views.indexOf(this.tiles.view) + 1) % views.length]);
  }

  setWindow(changes) {
    Object.assign(this.window, changes);
    for (const slider of this.section.querySelectorAll("[data-window]")) slider.value = this.window[slider.dataset.window];
    const { brightness, contrast, gamma } = this.window;
    const isChanged = Boolean(brightness || contrast || gamma);
    const steps = 64;
    const table = Array.from({ length: steps + 1 }, (_, place) => this.windowed(place / steps).toFixed(4)).join(" ");
    for (const part of document.querySelectorAll("#plate-window feComponentTransfer > *")) part.setAttribute("tableValues", table);
    this.canvas.style.filter = isChanged ? "url(#plate-window)" : "";
    this.noteChanges();
  }

  windowed(value) {
    const { brightness, contrast, gamma } = this.window;
    const stretched = (value - 0.5 + brightness / 100) * 8 ** (contrast / 100) + 0.5;
    return Math.min(1, Math.max(0, stretched)) ** (4 ** (-gamma / 100));
  }

  resetWindow() {
    this.setWindow({ brightness: 0, contrast: 0, gamma: 0 });
  }

  // From the darkest to the brightest of what is seen, without the outermost hundredths.
  stretch() {
    const small = document.createElement("canvas");
    small.width = 128;
    small.height = 96;
    const context = small.getContext("2d", { willReadFrequently: true });
    context.drawImage(this.canvas, 0, 0, 128, 96);
    const { data } = context.getImageData(0, 0, 128, 96);
    const greys = Array.from({ length: data.length / 4 }, (_, place) => data[4 * place]).sort((a, b) => a - b);
    const [dark, bright] = [0.01, 0.99].map((share) => greys[Math.floor(share * (greys.length - 1))] / 255);
    const contrast = Math.min(100, (100 * Math.log(1 / Math.max(0.02, bright - dark))) / Math.log(8));
    this.setWindow({ brightness: Math.round(100 * (0.5 - (dark + bright) / 2)), contrast: Math.round(contrast), gamma: 0 });
  }

  noteChanges() {
    const isRecorded = this.tiles.view === "recorded" && !this.window.brightness && !this.window.contrast && !this.window.gamma;
    this.section.querySelector('[data-note="recorded"]').hidden = isRecorded;
  }

  // --- measuring ---

  toggleMeasure() {
    if (!this.pitch) return;
    this.measure = this.measure ? null : { points: [], at: { x: this.x, y: this.y } };
    this.press("measure", Boolean(this.measure));
    this.stage.focus({ preventScroll: true });
    this.sayMeasure();
    this.redraw();
  }

  // To a defect's sides and corners, where one is near.
  snapped(point) {
    const reach = (SNAP_PX * this.density) / this.scale;
    const near = (value, choices) => {
      const best = choices.reduce((a, b) => (Math.abs(b - value) < Math.abs(a - value) ? b : a), Infinity);
      return Math.abs(best - value) <= reach ? best : value;
    };
    const around = this.defects.filter((one) => point.x > one.x - reach && point.x < one.x + one.w + reach && point.y > one.y - reach && point.y < one.y + one.h + reach);
    return { x: near(point.x, around.flatMap((one) => [one.x, one.x + one.w])), y: near(point.y, around.flatMap((one) => [one.y, one.y + one.h])) };
  }

  setCursor(point) {
    this.measure.at = this.snapped(point);
    this.redraw();
  }

  setPoint(point) {
    if (this.measure.points.length === 2) this.measure.points = [];
    this.measure.at = this.snapped(point);
    this.measure.points.push({ ...this.measure.at });
    this.sayMeasure();
    this.redraw();
  }

  pointNear(at) {
    const places = this.measure.points.map((one) => this.toCanvas(one.x, one.y));
    const found = places.findIndex((one) => Math.hypot(one.x - at.x, one.y - at.y) < 24 * this.density);
    return found < 0 ? null : found;
  }

  movePoint(number, point) {
    this.measure.points[number] = this.snapped(point);
    this.sayMeasure();
    this.redraw();
  }

  nudge(arrow, steps) {
    const { measure } = this;
    measure.at = { x: measure.at.x - arrow[0] * steps, y: measure.at.y - arrow[1] * steps };
    this.sayPosition(measure.at);
    this.redraw();
  }
}

function isTyped(event) {
  return event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, textarea, [contenteditable]");
}

// To the plate before and after, also where there is no picture.
function turn(event) {
  const link = { ",": "prev", ".": "next" }[event.key];
  const found = link && !isTyped(event) && document.querySelector(`.plate-turn a[rel="${link}"]`);
  if (found) found.click();
}

function colourOf(score) {
  const place = Math.min(0.9999, Math.max(0, score)) * (RAMP.length - 1);
  const [from, to] = [RAMP[Math.floor(place)], RAMP[Math.floor(place) + 1]];
  const part = place - Math.floor(place);
  return `rgb(${from.map((value, one) => Math.round(value + part * (to[one] - value))).join(",")})`;
}

// A plate on its way: its page as soon as there is a result.
async function waitFor(address, pauseMs = 80) {
  const answer = await fetch(address).catch(() => null);
  if (answer && answer.ok && !(await answer.json()).is_waiting) window.location.reload();
  else setTimeout(() => waitFor(address, Math.min(1.1 * pauseMs, 2000)), pauseMs);
}

document.addEventListener("keydown", turn);
for (const waiting of document.querySelectorAll("[data-waits]")) waitFor(waiting.dataset.waits);
for (const section of document.querySelectorAll(".plate-viewer")) section.viewer = new Viewer(section);
