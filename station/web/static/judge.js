// Judging by touch or key: each form is sent once, its answer is said, and what is not known to be
// written stays as it is, with its nonce, so that sending it again is safe. Without this script the
// same forms lead to pages that say the same.

const TYPED = "input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]";
const UNDO_S = 20;
const ANSWER_S = 25;
const ALONE_MS = 60; // keyboard-wedge scanners leave less between two letters
const KEYS = "judge-keys";
const MODIFIERS = ["Shift", "Control", "Alt", "AltGraph", "Meta", "CapsLock"];

function frame(form) {
  return form.closest("[data-text-sending]") || document.querySelector("[data-text-sending]");
}

// Of a list each plate has its own place for words: those at its top may be far off the screen.
function say(form, text, isBad, ...actions) {
  const place = (form.closest("li") ?? frame(form)).querySelector(".judge-says");
  place.classList.toggle("is-bad", isBad);
  place.replaceChildren(text, ...actions);
  if (isBad) place.scrollIntoView({ block: "nearest" });
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "button large";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

function link(text, address) {
  const made = document.createElement("a");
  made.className = "button large";
  made.href = address;
  made.textContent = text;
  return made;
}

function content(form, submitter) {
  const fields = new FormData(form, submitter);
  const body = Object.fromEntries([...fields].filter(([name]) => name !== "csrf"));
  body.kinds = fields.getAll("kinds");
  body.supersedes = Number(body.supersedes);
  return body;
}

async function send(form, body) {
  const texts = frame(form).dataset;
  const held = [...form.querySelectorAll("button:not(:disabled)")];
  held.forEach((one) => (one.disabled = true));
  say(form, texts.textSending, false);
  let answer, said;
  try {
    answer = await fetch(`${form.action}.json`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": texts.csrf },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(ANSWER_S * 1000),
    });
    said = await answer.json();
  } catch {
    answer = null;
  }
  held.forEach((one) => (one.disabled = false));
  if (answer === null) return unknown(form, body, texts.textUnsent);
  if (answer.ok) return done(form, said);
  if (answer.status === 409) return refused(form, said.error);
  if (answer.status >= 500) return unknown(form, body, said.error);
  if (answer.status === 401)
    return say(form, said.error, true, link(texts.textSignIn, signIn()));
  say(form, said.error, true);
}

function signIn() {
  return `/sign-in?back=${encodeURIComponent(location.pathname + location.search)}`;
}

// The same content under the same nonce: however often it is sent, it is one row.
function unknown(form, body, text) {
  say(form, text, true, button(frame(form).dataset.textAgain, () => send(form, body)));
}

function refused(form, text) {
  say(form, text, true, button(frame(form).dataset.textReload, () => location.reload()));
}

// The whole page anew: the verdict stands in more places of it than the panel.
function done(form, committed) {
  if (committed.address.startsWith("/open")) return location.assign(committed.address);
  const address = new URL(location.href);
  address.searchParams.set("judged", committed.seq);
  location.replace(address);
}

function prepare() {
  for (const undo of document.querySelectorAll(".judge-undo"))
    setTimeout(() => undo.classList.add("is-old"), UNDO_S * 1000);
  document.querySelectorAll(".judge").forEach(showKeys);
  document.querySelector(".judge-done")?.focus();
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches(".judge-form")) return;
  event.preventDefault();
  send(form, content(form, event.submitter));
});

// One kind a defect.
document.addEventListener("change", (event) => {
  if (!event.target.matches(".judge-chip input") || !event.target.checked) return;
  for (const other of event.target.closest("fieldset").querySelectorAll("input"))
    if (other !== event.target) other.checked = false;
});

// One list of reasons is open at a time, so that a digit means one thing.
document.addEventListener(
  "toggle",
  (event) => {
    if (!event.target.matches?.(".judge-choose[open]")) return;
    for (const other of document.querySelectorAll(".judge-choose[open]"))
      if (other !== event.target) other.open = false;
  },
  true,
);

function wanted(key) {
  if (/^[1-9]$/.test(key)) {
    const reasons = document.querySelectorAll(".judge-choose[open] .judge-reasons button");
    return reasons[Number(key) - 1];
  }
  return document.querySelector(`.judge [data-key="${CSS.escape(key)}"], .judge-done [data-key="${CSS.escape(key)}"]`);
}

// A scanner writes a badge or a serial letter by letter: only a key that comes alone judges.
let lastKeyMs = -Infinity;
let alone = 0;

function isAlone(event) {
  const sinceMs = event.timeStamp - lastKeyMs;
  lastKeyMs = event.timeStamp;
  clearTimeout(alone);
  return sinceMs > ALONE_MS;
}

function judgeBy(found) {
  if (!found.isConnected || found.disabled) return;
  found.click();
  if (found.matches("summary")) found.focus();
}

function areKeysOff() {
  return localStorage.getItem(KEYS) === "off";
}

// Of this screen (WCAG 2.1.4): where a scanner or a voice writes, keys may be turned off.
function showKeys(panel) {
  panel.classList.toggle("has-no-keys", areKeysOff());
  const box = panel.querySelector(".judge-keys input");
  if (!box) return;
  box.closest("label").hidden = false;
  box.checked = !areKeysOff();
}

document.addEventListener("change", (event) => {
  if (!event.target.matches(".judge-keys input")) return;
  localStorage.setItem(KEYS, event.target.checked ? "on" : "off");
  document.querySelectorAll(".judge").forEach(showKeys);
});

// Before other keys of the page: while reasons are offered, digits choose among them.
document.addEventListener(
  "keydown",
  (event) => {
    if (MODIFIERS.includes(event.key) || event.repeat) return;
    const isByHand = isAlone(event);
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || areKeysOff()) return;
    if (event.target.matches?.(TYPED) || event.key.length !== 1) return;
    const found = wanted(event.key.toLowerCase());
    if (!found || found.disabled) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (isByHand) alone = setTimeout(() => judgeBy(found), ALONE_MS);
  },
  true,
);

prepare();
