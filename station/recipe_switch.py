"""Another recipe, between two plates.

What was asked for is checked in a process of its own while plates are judged as ever. One that
differs from the active one in `[model]` only is then taken up hot: its judge is loaded beside the
one that judges, and has the plates whose leading edge comes after its row is in the log. For any
other the plate on the belt is finished, and the station ends in order and is started again with the
new recipe, tested as at any start. What is found wrong leaves the former recipe where it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drivers.camera import CameraInfo
from models.card import ModelError
from station.config import (
    ConfigError,
    Configuration,
    Loaded,
    Recipe,
    load_configuration,
    load_recipe,
)
from station.ipc import Json
from station.judge import LoadedJudge, load_judge
from station.limit_samples import NO_SAMPLES, Run, run_aside
from station.log_lines import get_logger
from station.product import fitting, geometry_of
from station.recipes import (
    Named,
    RecipeError,
    RecipeFolder,
    Switch,
    activated_change,
    is_model_change,
)
from station.record import ChangeBody
from station.tied import tied

_LOG = get_logger("recipe")
_CHECK_LIMIT_S = 120.0
_LOADING_NICE = 10
"""Of the thread that loads a model beside the one that judges. Not 19: it holds the interpreter for
some milliseconds now and then, and nobody in this process goes on before it does."""


@dataclass(frozen=True, slots=True)
class RecipeChecked:
    """`problem`: why what was asked for cannot judge here; empty if it can."""

    wanted: Named
    problem: str
    tested: LoadedJudge | None = None
    """Loaded beside the one that judges, where it is taken up hot."""
    samples: Run = NO_SAMPLES
    """What the limit samples came to with it."""


class RecipeSwitch:
    """An activation on its way, if there is one. Used by the station's main thread."""

    def __init__(
        self,
        configuration: Loaded[Configuration],
        recipe: Loaded[Recipe],
        post: Callable[[RecipeChecked], None],
    ) -> None:
        self._configuration = configuration
        self._recipe = recipe
        self._post = post
        self._folder = RecipeFolder.of(configuration.value)
        self.wanted: Named | None = None
        self._stage = ""
        self._since = 0.0
        self._scan_line_px = 0
        """Of the camera that is connected."""
        self._switch: Switch | None = None
        """Of a hot one, as it lies in the folder."""
        self._is_kept = False
        """For the next start."""
        self.problem = ""
        """Of the last activation that did not come about."""

    @property
    def is_waiting(self) -> bool:
        """The station is to end between two plates."""
        return self._stage == "waiting"

    @property
    def is_rollback(self) -> bool:
        """What is wanted judged before."""
        return self._switch is not None and self._switch.is_rollback

    @property
    def status(self) -> Json:
        """What is being activated, and why the last activation did not come about."""
        return {
            "wanted": self.wanted.name if self.wanted else "",
            "who": self.wanted.who if self.wanted else "",
            "stage": self._stage,
            "for_s": round(time.monotonic() - self._since, 1) if self.wanted else 0.0,
            "problem": self.problem,
        }

    @property
    def not_ready(self) -> str:
        """Why no plate should come; empty if one may."""
        if not self.is_waiting or self.wanted is None:
            return ""
        return f"recipe {self.wanted.name} is taken up after the plate on the belt"

    def ask(
        self, name: str, who: str, camera: CameraInfo, is_rollback: bool = False, reason: str = ""
    ) -> str:
        """Begin to check a version; why it is refused at once, empty if it is not. A roll-back's is
        not checked aside: it judged before, and the journal process holds it against the log."""
        if self.wanted is not None:
            return f"{self.wanted.name} is being activated; wait until it is"
        if camera.driver == "replay":
            return "a replay keeps the recipe that it began with; start it again with another"
        if not is_rollback and (changed := self._changed_configuration()):
            return changed
        try:
            recipe = load_recipe(str(self._folder.file(name)))
            pitch_mm = self._configuration.value.camera.pixel_pitch_mm
            geometry_of(recipe, pitch_mm, camera.width)
            self._scan_line_px = camera.width
        except (ConfigError, RecipeError) as error:
            return str(error)
        if recipe.sha256 == self._recipe.sha256:
            return f"{name} is the active one"
        is_hot = is_model_change(self._recipe.value, recipe.value)
        if is_rollback and not is_hot:
            return (
                f"{name} differs from the active one in more than [model]; `vqi recipe activate` "
                "takes it up with a restart"
            )
        wanted = Named(
            id=recipe.value.id, version=recipe.value.version, sha256=recipe.sha256, who=who
        )
        self.wanted = wanted
        self._stage, self._since, self.problem = "checking", time.monotonic(), ""
        self._switch = None
        if is_hot:
            said = {"is_rollback": is_rollback, "reason": reason}
            self._switch = Switch.model_validate({"wanted": wanted, "state": "hot", **said})
        check = (self._check, (wanted,)) if not is_hot else (self._load, (self._switch, recipe))
        threading.Thread(target=check[0], args=check[1], name="recipe", daemon=True).start()
        return ""

    def checked(self, checked: RecipeChecked) -> str:
        """The check has ended: from here on the station waits for the plate's end, or for the row
        of a hot one, or goes on; why it goes on, empty if it waits."""
        is_hot = checked.tested is not None
        is_as_before = is_hot or self.is_rollback  # what judged before, in any case
        problem = checked.problem or ("" if is_as_before else self._changed_configuration())
        if problem:
            self.refuse(problem)
        else:
            self._stage = "taking_up" if is_hot else "waiting"
            self._is_kept = is_hot
        return problem

    def activation(self, station_id: str, said: Mapping[str, str]) -> ChangeBody:
        """The row from which on a hot one judges."""
        assert self._switch is not None
        return activated_change(station_id, self._switch, said)

    def taken_up(self, recipe: Loaded[Recipe]) -> None:
        """Its row is durable, and so is the file that says which one judges."""
        _LOG.info("recipe taken up", name=self.wanted and self.wanted.name)
        self._recipe, self.wanted, self._stage, self._is_kept = recipe, None, "", False
        self.forget(self._switch)

    @property
    def hot(self) -> Switch | None:
        """What is, or was last, to be taken up hot, as it lies in the folder."""
        return self._switch

    def forget(self, switch: Switch | None) -> None:
        """Of this hot one a start has nothing to settle; another may be asked for by now."""
        if switch is None or self._switch is not switch:
            return
        self._switch = None
        with contextlib.suppress(OSError):  # the next start says once more that it is settled
            self._folder.forget_switch()

    def _changed_configuration(self) -> str:
        """The next start would take up more than a recipe: what nobody asked for and approved."""
        source = self._configuration.source
        try:
            sha256 = load_configuration(source).sha256
        except ConfigError as error:
            return str(error)
        if sha256 == self._configuration.sha256:
            return ""
        return (
            f"{source} was changed since the station started (sha256 {sha256[:12]}, running "
            f"{self._configuration.sha256[:12]}); restart the station with it first, or undo that"
        )

    def refuse(self, problem: str) -> None:
        _LOG.warning("recipe refused", wanted=self.wanted and self.wanted.name, problem=problem)
        self.wanted, self._stage, self.problem = None, "", problem
        self._is_kept = False

    def commit(self, is_halted: bool) -> str:
        """Nothing is on the belt: let the next start take it up. Why this cannot be kept; empty if
        it is."""
        assert self.wanted is not None
        said = self._switch or Switch(wanted=self.wanted)  # a hot one stays a roll-back, if it is
        try:
            update = {"state": "asked", "is_halted": is_halted}
            self._folder.keep_switch(said.model_copy(update=update))
        except OSError as error:
            self.refuse(f"{self._folder.path}: {error.strerror}")
        else:
            self._is_kept = True
        return self.problem

    def drop(self, problem: str) -> Named | None:
        """The station ends before it came to it; what was wanted, None if nothing was."""
        wanted = None if self._is_kept else self.wanted
        if wanted is not None:
            self.refuse(problem)
        return wanted

    def _check(self, wanted: Named) -> None:
        try:
            problem = self._checked_aside(wanted.name)
        except Exception as error:  # noqa: BLE001  unanswered, nothing else could be asked for
            problem = _unexpected(error)
        self._post(RecipeChecked(wanted, problem))

    def _load(self, switch: Switch, recipe: Loaded[Recipe]) -> None:
        """Check a hot one aside, then load its judge beside the one that judges."""
        tested, samples, wanted = None, NO_SAMPLES, switch.wanted
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADING_NICE)
            self._folder.keep_switch(switch)
            problem = "" if switch.is_rollback else self._checked_aside(wanted.name)
            if not problem:
                self._stage = "loading"
                tested = load_judge(self._configuration, fitting(self._configuration, recipe))
                samples = self._show_samples(tested, wanted)
                # What judged before is gone back to in any case, but judges nothing after this.
                if samples.findings and not switch.is_rollback:
                    tested, problem = None, f"limit samples: {'; '.join(samples.findings[:3])}"
        except (ConfigError, ModelError) as error:
            tested, problem = None, str(error)
        except Exception as error:  # noqa: BLE001  unanswered, nothing else could be asked for
            tested, problem = None, _unexpected(error)
        self._post(RecipeChecked(wanted, problem, tested, samples))

    def _show_samples(self, tested: LoadedJudge, wanted: Named) -> Run:
        by, pitch_mm = tested.judge, self._configuration.value.camera.pixel_pitch_mm
        line_px, cause = self._scan_line_px, f"recipe {wanted.name}"
        return run_aside(by.recipe, by.classifier, pitch_mm, line_px, cause, "")

    def _checked_aside(self, name: str) -> str:
        """In a process that gives way to this one: a model is loaded, and must reproduce its golden
        scores."""
        source = self._configuration.source
        command = [sys.executable, "-P", "-m", "station.cli", "recipe", "check", name]
        done = subprocess.run(
            tied(["nice", "-n", "19", *command, "--config", source, "--json"]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHECK_LIMIT_S,
            check=False,
        )
        if not done.stdout:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            return said[-1] if said else f"its check ended with status {done.returncode}"
        return str(json.loads(done.stdout)["problem"])


def _unexpected(error: Exception) -> str:
    if isinstance(error, OSError | ValueError | subprocess.TimeoutExpired):
        return f"it could not be checked: {error}"
    _LOG.error("recipe could not be checked", error=repr(error))
    return f"it could not be checked: {type(error).__name__}: {error}"
