// The PIN pad, and the countdown of a shared screen.

const SOON_S = 15;
const TOUCH_EVERY_S = 5;

for (const pad of document.querySelectorAll("[data-pad]")) {
  const field = document.getElementById(pad.dataset.pad);
  pad.hidden = false;
  pad.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.digit !== undefined && field.value.length < field.maxLength) {
      field.value += button.dataset.digit;
    } else if ("clear" in button.dataset) {
      field.value = "";
    } else if ("back" in button.dataset) {
      field.value = field.value.slice(0, -1);
    }
  });
}

// A badge scanner types the badge and Enter: the PIN comes next. A name chosen from the list needs none typed.
const who = document.getElementById("who");
const pin = document.getElementById("pin");
if (who && pin) {
  who.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && who.value && !pin.value) {
      event.preventDefault();
      pin.focus();
    }
  });
  for (const choice of document.querySelectorAll("input[name=chosen]")) {
    choice.addEventListener("change", () => {
      who.value = "";
      pin.focus();
    });
  }
}

const countdown = document.querySelector("[data-signs-out-after-s]");
if (countdown) watch(countdown, Number(countdown.dataset.signsOutAfterS) - 1); // before the station does

function watch(shown, limit_s) {
  const unit = new Intl.NumberFormat(document.documentElement.lang, {
    style: "unit",
    unit: "second",
    unitDisplay: "short",
  });
  const form = document.querySelector('form[action="/sign-out"]');
  const token = form.querySelector("input[name=csrf]").value;
  const others = new BroadcastChannel("vqi-hand");
  let moved = performance.now();
  let told = moved;
  const post = (path) =>
    fetch(path, {
      method: "POST",
      headers: { "x-csrf-token": token, "content-type": "application/json" },
      body: "{}",
    });
  const tell = () => {
    if (moved <= told || performance.now() - told < TOUCH_EVERY_S * 1000) return;
    told = performance.now();
    post("/session/touch.json").then((answer) => {
      if (answer.status === 401) location.assign("/");
    }, () => {});
  };
  others.onmessage = () => {
    moved = told = performance.now();
  };
  const here = () => {
    moved = performance.now();
    others.postMessage("");
    tell();
  };
  for (const kind of ["pointerdown", "keydown", "wheel", "touchstart"]) {
    addEventListener(kind, here, { passive: true, capture: true });
  }
  const timer = setInterval(() => {
    const left_s = Math.ceil(limit_s - (performance.now() - moved) / 1000);
    shown.textContent = unit.format(Math.max(0, left_s));
    shown.parentElement.classList.toggle("soon", left_s <= SOON_S);
    tell();
    if (left_s > 0) return;
    clearInterval(timer);
    const leave = () => location.assign("/");
    post("/sign-out.json").then(leave, leave);
  }, 500);
}
