"""One life of one station, in a process with mounts and a network of its own.

`python -m campaign.worker JSON`: plan, folder, ledger and state, as `__main__` writes them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from own_machine import enter_own_network, enter_own_terminals

from campaign import kinds_camera
from campaign.belt import Belt
from campaign.engine import Engine, Outcome
from campaign.kinds import KINDS, NotThere
from campaign.ledger import Ledger, State
from campaign.life import Life

Json = dict[str, Any]
_KEPT = ("stderr.log", "stdout.jsonl", "tower.log", "panel.log")
_MOST_KEPT = 40


class Worker:
    def __init__(self, order: Json) -> None:
        self._order = order
        self._ledger = Ledger(Path(order["ledger"]), State(order["commit"], order["dirty"]))
        self._folder = Path(order["folder"])

    def run(self) -> int:
        life = self._life()
        engine = Engine(life)
        try:
            engine.begin()
            for name, seed in self._order["plan"]:
                if time.time() > self._order["until"]:
                    break
                if not self._strike(engine, name, seed):
                    return 1
            self._end(engine)
        finally:
            life.close()
            life.remove()
        return 0

    def _life(self) -> Life:
        camera, seed, names = (self._order[key] for key in ("camera", "seed", "plan"))
        return Life(
            self._folder,
            camera,
            seed,
            self._order["broken"],
            self._schedule(names),
            has_stops=not any(KINDS[name].is_like_a_stop for name, _ in names),
        )

    def _schedule(self, plan: list[tuple[str, int]]) -> Callable[[Belt], tuple[Json, Json]]:
        names = [name for name, _ in plan if name in kinds_camera.KNOBS]

        def make(belt: Belt) -> tuple[Json, Json]:
            draw = Random(self._order["seed"])
            frames, knobs = kinds_camera.schedule(names, draw)(belt)
            return frames, kinds_camera.settings(knobs, self._order["camera"])

        return make

    def _strike(self, engine: Engine, name: str, seed: int) -> bool:
        """False if this station is of no more use."""
        try:
            outcome = engine.strike(KINDS[name], seed)
        except NotThere as error:
            print(f"{name}: not struck: {error}", flush=True)
            return True
        except Exception:  # noqa: BLE001  a campaign that dies says nothing
            print(f"{name}, seed {seed}: {traceback.format_exc()}", flush=True)
            return False
        self._add(engine, outcome)
        is_over = bool(outcome.said) and self._order["broken"] is not None
        return outcome.recovery_s is not None and not is_over

    def _end(self, engine: Engine) -> None:
        """A clean stop, as every life ends: nothing may be left undone."""
        began_ns = time.monotonic_ns()
        status = engine.life.stop()
        findings = engine.observer.judge(began_ns, is_over=True)
        behind = engine.observer.behind(began_ns)
        said = [*findings.all, *([behind] if behind else [])]
        said += [f"exit status {status}: {engine.stderr()}"] if status else []
        leave_s = engine.observer.green_left_s(began_ns)
        self._add(
            engine,
            Outcome("clean stop", self._order["seed"], findings.counts(), leave_s, said=said),
        )

    def _add(self, engine: Engine, outcome: Outcome) -> None:
        run = {
            **outcome.as_json(),
            "stations": self._order["stations"],
            "broken": self._order["broken"],
            "load": os.getloadavg()[0],
        }
        self._ledger.add(run)
        if outcome.said and not self._order["broken"]:
            self._keep(engine, outcome)

    def _keep(self, engine: Engine, outcome: Outcome) -> None:
        """What the tower was sent and the processes said, for whoever looks into it."""
        folder = self._ledger.path.parent / "evidence" / f"{outcome.kind}-{outcome.seed}"
        if len(list(folder.parent.glob("*"))) >= _MOST_KEPT:
            return
        # Closing a copy's descriptor would drop this process's locks on the database.
        engine.observer.log.release()
        folder.mkdir(parents=True, exist_ok=True)
        for name in _KEPT:
            shutil.copy(engine.life.folder / name, folder / name)
        (folder / "said.json").write_text(json.dumps(outcome.as_json(), indent=1))
        for file in engine.life.journal.glob("journal.db*"):
            shutil.copy(file, folder / file.name)


def main() -> int:
    enter_own_terminals()
    enter_own_network()
    return Worker(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    sys.exit(main())
