// Sounds when the line calls, if somebody wanted that: asked once for this browser, off by default.
// A browser plays nothing before a person has touched the page.
const KEY = "vqi-sound";
const AGAIN_MS = 20000;
const PATTERNS = {
  fault: [660, 440, 660, 440, 660, 440],
  fail: [880, 880, 880],
  undecided: [660, 660],
  attention: [550],
};

export function sound(box) {
  const ask = box.querySelector("#sound-ask");
  const button = box.querySelector("#sound-switch");
  let context = null;
  let level = "";
  let call = "";
  let playedMs = -AGAIN_MS;

  const wanted = () => localStorage.getItem(KEY);
  const isReady = () => context?.state === "running";

  function show() {
    box.hidden = false;
    ask.hidden = wanted() !== null;
    button.hidden = wanted() === null;
    const isOn = wanted() === "on";
    button.setAttribute("aria-pressed", String(isOn));
    button.textContent = isOn ? (isReady() ? box.dataset.isOn : box.dataset.touch) : box.dataset.isOff;
  }

  async function choose(choice) {
    localStorage.setItem(KEY, choice);
    if (choice === "on") await allow();
    show();
  }

  async function allow() {
    context ??= new AudioContext();
    await context.resume();
    playedMs = -AGAIN_MS;
    play();
  }

  function play() {
    if (wanted() !== "on" || !isReady() || !PATTERNS[level]) return;
    if (performance.now() - playedMs < AGAIN_MS) return;
    playedMs = performance.now();
    PATTERNS[level].forEach((hertz, place) => beep(hertz, context.currentTime + 0.3 * place));
  }

  function beep(hertz, at) {
    const tone = context.createOscillator();
    const volume = context.createGain();
    tone.frequency.value = hertz;
    volume.gain.setValueAtTime(0.0001, at);
    volume.gain.exponentialRampToValueAtTime(0.4, at + 0.02);
    volume.gain.exponentialRampToValueAtTime(0.0001, at + 0.22);
    tone.connect(volume).connect(context.destination);
    tone.start(at);
    tone.stop(at + 0.24);
  }

  box.querySelector("#sound-yes").addEventListener("click", () => choose("on"));
  box.querySelector("#sound-no").addEventListener("click", () => choose("off"));
  button.addEventListener("click", () => {
    if (wanted() === "on" && !isReady()) allow().then(show);
    else choose(wanted() === "on" ? "off" : "on");
  });
  document.addEventListener("pointerdown", () => wanted() === "on" && !isReady() && allow().then(show));
  setInterval(play, 1000);
  show();

  return {
    // Plays at once for another call, and again while it stands.
    tell(newLevel, newCall) {
      if (newCall !== call || newLevel !== level) playedMs = -AGAIN_MS;
      [level, call] = [newLevel, newCall];
      play();
    },
  };
}
