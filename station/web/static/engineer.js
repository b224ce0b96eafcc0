// The camera page: asks twice a second while it is looked at; a page in the background asks nobody.
const root = document.querySelector("[data-camera]");
const EVERY_MS = 500;
const STALE_S = 2;
const ANSWER_MS = 3000; // a page's process that hangs sends no error
const NO_NEWS = "engineer.picture_stale";
let pictureAt = root?.dataset.at ?? ""; // when the last one came, as the station's clock showed it

function figure(element, value) {
  if (value === null || value === undefined) return "–";
  const share = element.dataset.share;
  const digits = Number(share ?? element.dataset.digits);
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(root.dataset.locale, share ? { ...options, style: "percent" } : options).format(value);
}

function canvas(name) {
  const element = root.querySelector(name);
  const pen = element.getContext("2d");
  pen.clearRect(0, 0, element.width, element.height);
  pen.strokeStyle = pen.fillStyle = getComputedStyle(element).color;
  return [element, pen];
}

function trace(pen, element, values) {
  pen.beginPath();
  values.forEach((value, at) => {
    pen.lineTo((at / (values.length - 1)) * element.width, element.height * (1 - value / 255));
  });
}

function drawProfile(picture) {
  const [element, pen] = canvas("[data-profile]");
  pen.globalAlpha = 0.25;
  pen.beginPath();
  const steps = picture.profile_high.length - 1;
  const point = (value, at) => pen.lineTo((at / steps) * element.width, element.height * (1 - value / 255));
  picture.profile_high.forEach(point);
  for (let at = steps; at >= 0; at -= 1) point(picture.profile_low[at], at);
  pen.fill();
  pen.globalAlpha = 1;
  pen.lineWidth = 2;
  trace(pen, element, picture.profile_mean);
  pen.stroke();
}

function drawHistogram(picture) {
  const [element, pen] = canvas("[data-histogram]");
  const most = Math.max(1, ...picture.histogram);
  const width = element.width / picture.histogram.length;
  picture.histogram.forEach((count, at) => {
    const height = element.height * Math.sqrt(count / most);
    pen.fillRect(at * width, element.height - height, width - 1, height);
  });
}

function showZones(zones) {
  const rows = zones.map((zone) => {
    const row = document.createElement("tr");
    const head = row.appendChild(document.createElement("th"));
    head.scope = "row";
    head.textContent = `${zone.start_px}–${zone.end_px}`;
    for (const [value, digits] of [[zone.score, 5], [zone.rise_px, 1]]) {
      const cell = row.appendChild(document.createElement("td"));
      cell.className = "number";
      cell.dataset.digits = digits;
      cell.textContent = figure(cell, value);
    }
    return row;
  });
  root.querySelector("[data-zones]").replaceChildren(...rows);
}

function show(page) {
  const picture = page.picture;
  const isOld = picture === null || picture.age_s > STALE_S;
  if (picture !== null) pictureAt = picture.at;
  tell(isOld ? page.why || NO_NEWS : "");
  for (const element of root.querySelectorAll("[data-top]")) {
    element.textContent = figure(element, page[element.dataset.top]);
  }
  if (picture === null) return;
  root.querySelector("[data-picture]").src = `/engineer/camera/picture.jpg?frame=${picture.frame_id}`;
  for (const element of root.querySelectorAll("[data-figure]")) {
    element.textContent = figure(element, picture[element.dataset.figure]);
  }
  showZones(picture.zones);
  drawProfile(picture);
  drawHistogram(picture);
}

// Why all that is shown is old, by the key of its words, and since when; empty where it is not.
function tell(why) {
  root.classList.toggle("old", why !== "");
  root.querySelector("[data-old]").hidden = why === "";
  for (const words of root.querySelectorAll("[data-say]")) words.hidden = words.dataset.say !== why;
  root.querySelector("[data-last]").hidden = pictureAt === "";
  if (pictureAt !== "") root.querySelector("[data-last] time").textContent = moment(pictureAt);
}

function moment(at) {
  const days = new Intl.DateTimeFormat(root.dataset.locale, { dateStyle: "medium", timeZone: "UTC" });
  return `${days.format(new Date(at.slice(0, 10)))} ${at.slice(11, 19)}`;
}

async function turn() {
  if (document.hidden) {
    tell(NO_NEWS); // until it is looked at, and somebody has answered
  } else {
    try {
      const signal = AbortSignal.timeout(ANSWER_MS);
      const answer = await fetch("/engineer/camera.json", { headers: { accept: "application/json" }, signal });
      if (answer.ok) show(await answer.json());
      else tell(NO_NEWS);
    } catch {
      tell(NO_NEWS);
    }
  }
  setTimeout(turn, EVERY_MS);
}

if (root) turn();

// The form of a recipe: what was refused, or did not arrive, is said above it, and nothing is lost.
function sayAboveForm(text) {
  const form = document.getElementById("recipe-form");
  if (form === null) return;
  form.querySelector("[data-refused]")?.remove();
  const said = document.createElement("p");
  said.className = "notice bad";
  said.dataset.refused = "";
  said.setAttribute("role", "alert");
  said.textContent = text;
  form.prepend(said);
  said.scrollIntoView({ block: "center" });
}

document.body.addEventListener("htmx:responseError", (event) => {
  const page = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
  sayAboveForm(page.querySelector("#content p")?.textContent ?? event.detail.xhr.statusText);
});
document.body.addEventListener("htmx:sendError", () => {
  sayAboveForm(document.getElementById("recipe-form")?.dataset.unsent ?? "");
});

// The pages of health and of the lamp ask anew every 3 s. What nobody renews is old: a server that
// hangs sends no error.
const OLD_MS = 7000;
let renewed = document.querySelector("[data-renewed]");
let renewedMs = 0; // when it came; of the first one, when it was asked for

function lookAtRenewed() {
  const shown = document.getElementById(renewed.id);
  if (shown === null) return location.reload(); // a sign-in came in its place
  if (shown !== renewed) renewedMs = performance.now();
  renewed = shown;
  if (performance.now() - renewedMs > OLD_MS && !renewed.classList.contains("old")) tellOld();
}

function tellOld() {
  renewed.classList.add("old");
  renewed.querySelector("[data-old]").hidden = false;
  for (const tag of renewed.querySelectorAll(".tag.pass")) {
    tag.className = "tag undecided";
    tag.textContent = renewed.dataset.unknown;
  }
  for (const words of renewed.querySelectorAll("[data-when-old]")) {
    words.textContent = words.dataset.whenOld;
  }
}

// A button that is being pressed stays until it is let go: it would not be pressed else.
function letBePressed(event) {
  if (event.detail.target.querySelector("button:active")) event.detail.shouldSwap = false;
}

if (renewed) {
  setInterval(lookAtRenewed, 500);
  document.addEventListener("visibilitychange", lookAtRenewed);
  document.body.addEventListener("htmx:beforeSwap", letBePressed);
}
