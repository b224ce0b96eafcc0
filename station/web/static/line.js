// The line view and the page of all lines stay true by themselves: parts that changed are put in,
// what nobody renews is old.
import { sound } from "./sound.js";

const OLD_MS = 1800;
const LOOK_MS = 200;
const AGAIN_MS = 2000;
const DRIFT = 2e-4; // of two clocks, at most; what is later than that waited on the way
const AHEAD_S = 2; // a time that is still further off: the clock was set back since

const line = document.querySelector("[data-live]");
const staleWords = document.getElementById("stale");
const language = document.documentElement.lang;
const days = new Intl.DateTimeFormat(line.dataset.locale, { dateStyle: "medium", timeZone: "UTC" });
const units = line.dataset.units.split("|");
const soundBox = document.getElementById("sound");
const sounds = soundBox && sound(soundBox);

const openedMs = performance.now();
let heardMs = line.classList.contains("stale") ? -Infinity : openedMs; // when what is shown was true
let moment = line.dataset.moment; // the same as the station's clock showed it
let atS = Date.parse(line.dataset.at) / 1000;
let atHeardMs = openedMs;
let verdictAt = null; // when the last one was, by a clock that can be set;
let verdictAgeS = 0; // and how old it was at the last beat, which nobody sets
let leastMs = Infinity; // between the station's clock and this one, with no delay on the way
let lastMs = openedMs;
let life = "";

function listen() {
  const source = new EventSource(line.dataset.live);
  source.addEventListener("news", (event) => {
    seeLife(event.lastEventId.split("-")[0]);
    for (const [name, html] of Object.entries(JSON.parse(event.data))) put(name, html);
    tellAges();
    tellSound();
  });
  source.addEventListener("beat", (event) => hear(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) return;
    source.close();
    setTimeout(again, AGAIN_MS);
  });
}

// The station's page refused the stream: it is busy, or somebody must sign in first.
async function again() {
  try {
    const answer = await fetch(`${location.pathname.replace(/\/$/, "/index")}.json`, { headers: { accept: "application/json" } });
    if (answer.status === 401) return location.reload();
  } catch {
    // It is not there; the next attempt will tell.
  }
  return listen();
}

// Another process serves the page now: its forms and files may be others.
function seeLife(told) {
  if (life && told !== life) location.reload();
  life = told;
}

function hear(beat) {
  const nowMs = performance.now();
  leastMs = Math.min(leastMs + (nowMs - lastMs) * DRIFT, nowMs - beat.ms);
  lastMs = nowMs;
  heardMs = leastMs + beat.ms;
  moment = `${days.format(new Date(beat.day))} ${beat.clock}`;
  atS = beat.at;
  atHeardMs = heardMs;
  verdictAgeS = beat.verdict_age_s ?? 0;
  verdictAt = beat.verdict_age_s == null ? null : beat.verdict_at;
  document.getElementById("as-of").textContent = moment;
  const lease = line.querySelector("[data-lease]");
  if (lease && beat.lease_s !== null) {
    const left = beat.lease_s.toLocaleString(language, { minimumFractionDigits: 1 });
    lease.textContent = line.dataset.left.replace("{left}", `${left}\u00a0${units[0]}`);
  }
}

function put(name, html) {
  const region = line.querySelector(`[data-region="${CSS.escape(name)}"]`);
  if (!region) return;
  // Before known items are moved, which takes the focus and the scrolling from them.
  const focused = region.contains(document.activeElement) && document.activeElement.getAttribute("href");
  const left = region.querySelector(".strip")?.scrollLeft ?? 0;
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  for (const item of fresh.content.querySelectorAll("[data-key]")) {
    const known = region.querySelector(`[data-key="${CSS.escape(item.dataset.key)}"]`);
    if (known && known.outerHTML === item.outerHTML) item.replaceWith(known);
  }
  region.replaceChildren(fresh.content);
  tellHeld();
  const strip = region.querySelector(".strip");
  if (strip) strip.scrollLeft = left;
  if (focused) region.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// A browser leaves a plate that is seen in part where it is.
line.addEventListener("focusin", ({ target }) => {
  const strip = target.closest(".strip");
  if (!strip) return;
  const seen = strip.getBoundingClientRect();
  const box = target.getBoundingClientRect();
  strip.scrollLeft += Math.max(0, box.right - seen.right) || Math.min(0, box.left - seen.left);
});

// Who acknowledges says which plate was seen.
function tellHeld() {
  const seen = document.querySelector('#acknowledge [name="seen"]');
  if (seen) seen.value = line.querySelector("[data-held]").dataset.held;
}

function look() {
  const isOld = performance.now() - heardMs > OLD_MS;
  if (isOld === line.classList.contains("stale")) return;
  line.classList.toggle("stale", isOld);
  staleWords.textContent = isOld ? staleWords.dataset.text.replace("{at}", moment) : "";
  tellSound();
}

function tellAges() {
  const sinceS = (performance.now() - atHeardMs) / 1000;
  for (const time of line.querySelectorAll("time[data-age]")) {
    const isVerdict = time.dateTime === verdictAt;
    const age = sinceS + (isVerdict ? verdictAgeS : atS - Date.parse(time.dateTime) / 1000);
    time.textContent = age < -AHEAD_S ? "–" : line.dataset.ago.replace("{age}", duration(Math.max(0, age)));
  }
}

function duration(seconds) {
  const steps = [60, 60, 24, Infinity];
  let value = Math.floor(seconds);
  let place = 0;
  while (value >= steps[place]) value = Math.floor(value / steps[place++]);
  return `${value.toLocaleString(language)}\u00a0${units[place]}`;
}

function tellSound() {
  const first = line.querySelector("[data-call]");
  const isStale = line.classList.contains("stale");
  sounds?.tell(isStale ? "fault" : first?.dataset.level || "", isStale ? "stale" : first?.dataset.call || "");
}

// A screen on the wall does not go dark (Screen Wake Lock; only where the page is secure).
async function stayAwake() {
  if (document.visibilityState !== "visible" || !line.classList.contains("kiosk")) return;
  try {
    await navigator.wakeLock?.request("screen");
  } catch {
    // The system does not allow it; its own settings hold.
  }
}

listen();
setInterval(look, LOOK_MS);
setInterval(tellAges, 1000);
tellAges();
tellSound();
stayAwake();
document.addEventListener("visibilitychange", stayAwake);
