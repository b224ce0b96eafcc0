"""What holds of every page: nothing spills over or is cut off, everything is reached by keyboard
and seen to be, axe finds nothing serious, nothing moves where motion is not wanted."""

from __future__ import annotations

from typing import Any

SERIOUS = ("serious", "critical")

_SPILLS = """
() => {
  const found = [];
  const root = document.scrollingElement;
  if (root.scrollWidth > innerWidth + 1)
    found.push(`page: ${root.scrollWidth} of ${innerWidth} px`);
  const isSeen = (box) => box.width > 1 && box.height > 1;
  const name = (one) => `${one.tagName.toLowerCase()}.${one.className || one.id}`
    + ` "${(one.innerText || one.value || "").trim().slice(0, 40)}"`;
  const scrolls = (one) => {
    for (let up = one; up && up !== document.body; up = up.parentElement) {
      const style = getComputedStyle(up);
      if (["auto", "scroll"].includes(style.overflowX)) return true;
      if (style.clipPath !== "none" || style.clip !== "auto") return true;
    }
    return false;
  };
  const words = "button, a, .button, .tag, label, legend, th, td, h1, h2, h3, p, li, dt, dd, "
    + "summary";
  for (const one of document.querySelectorAll(words)) {
    const box = one.getBoundingClientRect();
    if (!isSeen(box) || scrolls(one) || !one.checkVisibility({visibilityProperty: true})) continue;
    if (box.right > innerWidth + 1 || box.left < -1) found.push(`off the screen: ${name(one)}`);
    const style = getComputedStyle(one);
    const isCut = style.overflowX !== "visible" || style.overflowY !== "visible";
    if (isCut && (one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1))
      found.push(`cut off: ${name(one)}`);
    if (!one.matches("button, .button")) continue;
    const text = document.createRange();
    text.selectNodeContents(one);
    const inner = text.getBoundingClientRect();
    if (inner.width && (inner.right > box.right + 1 || inner.left < box.left - 1
        || inner.bottom > box.bottom + 1 || inner.top < box.top - 1))
      found.push(`text beside its button: ${name(one)}`);
  }
  return [...new Set(found)];
}
"""

_FOCUSED = """
() => {
  const one = document.activeElement;
  if (!one || one === document.body || one === document.documentElement) return null;
  const all = window.vqiWalked ??= [];
  const style = getComputedStyle(one);
  const marks = (s) => [s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0,
                        s.boxShadow !== "none"].some(Boolean);
  const box = one.getBoundingClientRect();
  const top = document.elementFromPoint(
    Math.min(Math.max(box.left + box.width / 2, 0), innerWidth - 1),
    Math.min(Math.max(box.top + box.height / 2, 0), innerHeight - 1));
  // What a live page has replaced meanwhile lies nowhere.
  const isBefore = all.some((last) => last !== one && last.isConnected
    && one.compareDocumentPosition(last) & Node.DOCUMENT_POSITION_FOLLOWING
    && !(one.name && one.name === last.name));
  const seen = {
    name: `${one.tagName.toLowerCase()}#${one.id}.${one.className}`
      + ` "${(one.innerText || one.value || "").trim().slice(0, 30)}"`,
    isAgain: all.includes(one),
    isOutOfOrder: isBefore,
    isMarked: marks(style)
      || one.closest("label") !== null && marks(getComputedStyle(one.closest("label"))),
    isOnScreen: box.width > 0 && box.bottom > 0 && box.top < innerHeight && box.right > 0
      && box.left < innerWidth,
    isCovered: top !== null && !(one.contains(top) || top.contains(one)),
  };
  all.push(one);
  return seen;
}
"""

_FOCUSABLE = """
() => [...document.querySelectorAll(
    "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex]")]
  .filter((one) => !one.disabled && one.tabIndex >= 0
    && one.checkVisibility({visibilityProperty: true})).length
"""

_MOVES = """
() => document.getAnimations()
  .filter((one) => one.playState === "running" && one.effect
    && one.effect.getComputedTiming().activeDuration > 1)
  .map((one) => `${one.animationName || one.transitionProperty} on `
    + `${one.effect.target.tagName}.${one.effect.target.className}`)
"""

_SMALL = """
(smallest) => [...document.querySelectorAll(
    "button, .button, select, input:not([type=hidden]), nav a, summary, [role=tab]")]
  .filter((one) => one.checkVisibility({visibilityProperty: true}))
  .map((one) => {
    // A tick or a dot is touched on the whole of its label.
    const label = ["checkbox", "radio"].includes(one.type) ? one.closest("label")
      || document.querySelector(`label[for="${CSS.escape(one.id)}"]`) : null;
    return [one, (label || one).getBoundingClientRect()];
  })
  .filter(([, box]) => box.width > 1 && (box.width < smallest - 0.5 || box.height < smallest - 0.5))
  .map(([one, box]) => `${one.tagName.toLowerCase()}.${one.className} "`
    + `${(one.innerText || one.name || "").trim().slice(0, 30)}" `
    + `${box.width.toFixed(0)} x ${box.height.toFixed(0)}`)
"""


def spills(page: Any) -> list[str]:
    """What lies outside the screen, is cut off, or does not fit its button."""
    return list(page.evaluate(_SPILLS))


def moves(page: Any) -> list[str]:
    """Animations that run."""
    return list(page.evaluate(_MOVES))


def small_targets(page: Any, smallest_px: float) -> list[str]:
    """What is touched and smaller than a gloved finger needs."""
    return list(page.evaluate(_SMALL, smallest_px))


def keyboard_faults(page: Any) -> list[str]:
    """One walk with Tab: what is not reached, not seen, out of order, or holds the focus."""
    wanted = int(page.evaluate(_FOCUSABLE))
    page.evaluate("() => { window.vqiWalked = []; document.activeElement.blur(); }")
    faults: list[str] = []
    reached = 0
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        one = page.evaluate(_FOCUSED)
        if one is None or one["isAgain"]:
            break
        reached += 1
        faults += _faults_of(one)
    else:
        faults.append(f"the focus never comes back: {reached} stops, {wanted} expected")
    if reached < min(wanted, 1):
        faults.append("nothing is reached by keyboard")
    return faults


def _faults_of(one: dict[str, Any]) -> list[str]:
    said = {
        "no mark of the focus": not one["isMarked"],
        "focused and off the screen": not one["isOnScreen"],
        "focused and covered": one["isCovered"],
        "out of order": one["isOutOfOrder"],
    }
    return [f"{what}: {one['name']}" for what, is_so in said.items() if is_so]


def axe_faults(page: Any) -> list[str]:
    """What axe-core calls serious or critical, by the rules of WCAG 2.0 to 2.2, A and AA."""
    from axe_playwright_python.sync_playwright import Axe

    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {"runOnly": {"type": "tag", "values": tags}, "resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['html'][:120]}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"][:2]
    ]
