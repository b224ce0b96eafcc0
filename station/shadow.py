"""The shadow process: a candidate model scores plates that the active one has judged.

It has the lowest priority there is and its share of one core, measured. It asks the station for a
plate whenever it may work, scores the very tiles with the same code, and says what it made of it in
rows of several plates. Nothing it does reaches a verdict, the lamp or an output; whoever kills or
stops it changes nothing but how many plates are shadowed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.card import ModelError
from models.classifier import Classifier
from models.runtimes import Findings
from station.acquisition import Tick
from station.config import ConfigError, Configuration, Loaded, Recipe
from station.inspection import FailingTile, Inspector, PlateScored, PlateWork
from station.ipc import Channel, Json, NotAMessage, Packet, PeerGone, connect
from station.journal_client import JournalClient
from station.judge import Judge
from station.lending import lent_plate
from station.log_lines import get_logger
from station.precision import load_classifier
from station.product import load_product
from station.record import ShadowBody, ShadowedPlate
from station.results import Judgement, judge, packed
from station.shadows import Life, Shadow, shadow_path
from station.strip import Plate
from station.systemd import notify
from station.tiling import Geometry, tile_row
from station.verdict import is_failing

_LOG = get_logger("shadow")
_RETRY_S = 0.5
_TURN_S = 0.25
_ROW_PLATES = 16
_ROW_S = 10.0
"""A row waits for so many plates, or so long: each is a commit that a verdict may wait behind."""
_MOST_WAITING = 64
"""Plates in rows that the journal has not taken; with more no plate is asked for."""
_BURST_S = 0.05
"""Processor time at once: a chunk of tiles or two."""


class Budget:
    """A token bucket of processor time, filled by the share of a core as time goes by. All that
    this process has ever used counts, its start too."""

    def __init__(
        self,
        share: float,
        began_s: float,
        now_s: Callable[[], float] = time.monotonic,
        used_s: Callable[[], float] = time.process_time,
    ) -> None:
        """`began_s`: when the process did, by `now_s`."""
        self._share, self._now_s, self._used_s = share, now_s, used_s
        self._at_s, self._used_before_s = began_s, 0.0
        self._tokens_s = 0.0

    def wait_s(self) -> float:
        """How long nothing may be done; 0 if something may."""
        now_s, used_s = self._now_s(), self._used_s()
        gained_s = self._share * (now_s - self._at_s) - (used_s - self._used_before_s)
        self._tokens_s = min(_BURST_S, self._tokens_s + gained_s)
        self._at_s, self._used_before_s = now_s, used_s
        return max(0.0, -self._tokens_s / self._share)


def candidate(
    configuration: Loaded[Configuration], recipe: Loaded[Recipe], shadow: Shadow
) -> Classifier:
    """The model of a shadow as it would judge here by this recipe, once its bytes, its graph and
    its golden scores are what they should be. Raises `ModelError`, `ConfigError`."""
    own = recipe.value.model
    said = (own.sha256, own.threshold, own.unsure_above)
    if said != (shadow.sha256, shadow.threshold, shadow.unsure_above):
        update = {
            "id": shadow.model_id,
            "folder": shadow.folder,
            "sha256": shadow.sha256,
            "threshold": shadow.threshold,
            "unsure_above": shadow.unsure_above,
        }
        value = recipe.value.model_copy(update={"model": own.model_copy(update=update)})
        recipe = replace(recipe, value=value, source="the model in the shadow")
    classifier = load_classifier(configuration, recipe, sessions=1).classifier
    classifier.self_test()
    return classifier


def serve(configuration: Loaded[Configuration], shadow: Shadow, life: Life) -> int:
    """Run until told to stop, or until another model, or none, is in the shadow. Exit status 0."""
    try:
        recipe = load_product(configuration)
        classifier = candidate(configuration, recipe, shadow)
    except (ConfigError, ModelError) as error:
        _LOG.error("the model cannot be in the shadow", problem=str(error))
        _say_problem(configuration.value, shadow, life, str(error))
        return 0
    return _Shadow(configuration.value, shadow, classifier, life).run()


def _say_problem(settings: Configuration, shadow: Shadow, life: Life, problem: str) -> None:
    """To the station, for as long as this model is in the shadow: nothing mends it here."""
    while not life.is_ending:
        notify("WATCHDOG=1")
        try:
            with connect(shadow_path(settings.station.runtime_dir)) as station:
                while not life.is_ending:
                    notify("WATCHDOG=1")
                    with contextlib.suppress(TimeoutError):
                        packet = station.receive(1.0)
                        packet.close()
                        if _is_another(packet.body, shadow):
                            return
                        station.send({"op": "problem", "text": problem})
        except (PeerGone, NotAMessage):
            time.sleep(_RETRY_S)


def _is_another(said: Json, shadow: Shadow) -> bool:
    """Whether the station says that something else, or nothing, is in the shadow."""
    return said.get("op") == "shadow" and (
        said["shadow"] is None or Shadow(**said["shadow"]) != shadow
    )


class _Ending(Exception):
    """It is told to end, or another model is in the shadow."""


class _Paced(Classifier):
    """The classifier, within its budget; says where it is."""

    def __init__(self, inner: Classifier, budget: Budget, life: Life) -> None:
        super().__init__(inner._folder, inner.card, inner.runners, inner.variant)
        self.is_self_tested = inner.is_self_tested  # the same sessions
        self._budget, self._life = budget, life
        self.is_abandoned = False
        """Nobody waits for the plate that is being scored."""
        self.chunks = 0

    def find(self, tiles: NDArray[np.uint8], session: int = 0) -> Findings:
        while not self._is_over and (wait_s := self._budget.wait_s()) > 0:
            time.sleep(min(wait_s, _TURN_S))
            self.chunks += 1  # it waits, but does not hang
        if self._is_over:
            raise _Ending
        self.chunks += 1
        return super().find(tiles, session)

    @property
    def _is_over(self) -> bool:
        return self.is_abandoned or self._life.is_ending


class _Shadow:
    def __init__(
        self, settings: Configuration, shadow: Shadow, classifier: Classifier, life: Life
    ) -> None:
        self._settings = settings
        self._shadow = shadow
        self._life = life
        self._budget = Budget(shadow.share, life.began_s)
        self._classifier = _Paced(classifier, self._budget, life)
        self._threshold = classifier.threshold_for(shadow.threshold)
        # A row of before they were said: the card's.
        self._unsure_above = classifier.unsure_above_for(shadow.unsure_above)
        self._station: Channel | None = None
        self._journal: JournalClient | None = None
        self._judging: Json = {}
        """What the plates of the row to come have in common."""
        self._plates: list[ShadowedPlate] = []
        self._first_at = 0.0
        self._rows: list[ShadowBody] = []
        self._said_at, self._said_cpu_s = life.began_s, 0.0

    def run(self) -> int:
        try:
            while not self._life.is_ending:
                notify("WATCHDOG=1")
                self._turn()
        except _Ending:
            pass
        self._end_row()
        self._send_rows()
        for connection in (self._station, self._journal):
            if connection is not None:
                connection.close()
        return 0

    def _turn(self) -> None:
        try:
            station = self._connected()
            self._send_due()
            if self._waiting >= _MOST_WAITING:
                time.sleep(_RETRY_S)
            elif (wait_s := self._budget.wait_s()) > 0:
                self._hear(station, min(wait_s, _TURN_S))
            else:
                station.send({"op": "ready"})
                self._await_plate(station)
        except (PeerGone, NotAMessage, TimeoutError):
            self._lose_station()

    @property
    def _waiting(self) -> int:
        return len(self._plates) + sum(len(row.plates) for row in self._rows)

    def _connected(self) -> Channel:
        """Raises `PeerGone`, `_Ending` if another model is in the shadow by now."""
        if self._station is None:
            self._station = connect(shadow_path(self._settings.station.runtime_dir))
            self._hear(self._station, 5.0)
        return self._station

    def _lose_station(self) -> None:
        if self._station is not None:
            self._station.close()
            self._station = None
        time.sleep(_RETRY_S)

    def _hear(self, station: Channel, timeout_s: float) -> Packet | None:
        """What the station says; None if it says nothing, or what is known."""
        try:
            packet = station.receive(timeout_s)
        except TimeoutError:
            return None
        if packet.body.get("op") != "shadow":
            return packet
        packet.close()
        if _is_another(packet.body, self._shadow):
            raise _Ending
        return None

    def _await_plate(self, station: Channel) -> None:
        while not self._life.is_ending:
            notify("WATCHDOG=1")
            self._send_due()
            packet = self._hear(station, _TURN_S)
            if packet is None:
                continue
            try:
                if packet.body["op"] == "plate":
                    self._take(station, packet)
            finally:
                packet.close()
            return

    def _take(self, station: Channel, packet: Packet) -> None:
        """Score a plate; it counts if it was lent to the end."""
        said, began, used_s = packet.body, time.monotonic(), time.process_time()
        with _mapped(packet) as plate:
            geometry = Geometry(**said["geometry"])
            judged = self._score(station, said, plate, geometry)
        if judged is None:
            return
        station.send({"op": "done", "loan": said["loan"], "is_scored": True})
        if self._is_kept(station, said["loan"]):
            took_ms = 1000 * (time.monotonic() - began)
            cpu_ms = 1000 * (time.process_time() - used_s)
            self._add(said, judged, took_ms, cpu_ms)

    def _is_kept(self, station: Channel, loan: int) -> bool:
        """The station had not taken the plate back while it was scored. Raises `PeerGone` if it
        had."""
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            packet = self._hear(station, _TURN_S)
            if packet is not None:
                packet.close()
                return bool(packet.body == {"op": "kept", "loan": loan})
        raise PeerGone("the station does not answer")

    def _score(
        self, station: Channel, said: Json, plate: Plate, geometry: Geometry
    ) -> Judgement | None:
        """As the station's own threads score it; None if that is not to be finished."""
        done: queue.SimpleQueue[PlateWork] = queue.SimpleQueue()

        def report(message: FailingTile | PlateScored | Tick) -> None:
            if isinstance(message, PlateScored):
                done.put(message.work)

        recipe = Recipe.model_validate(said["recipe"])
        loaded = Loaded(recipe, "the station's", said["recipe_sha256"])
        tested = self._classifier.is_self_tested
        by = Judge(loaded, self._classifier, self._threshold, tested, self._unsure_above)
        work = PlateWork(plate, said["judged"]["result_id"], 0, None, by)
        inspector = Inspector(geometry, 1, report)
        try:
            for index in range(-(-plate.length_px // geometry.step_px)):
                row = tile_row(geometry, index, *plate.region)
                if row is not None:
                    inspector.score(work, row)
            inspector.close(work)
            if not self._wait(station, said["loan"], done):
                return None
        finally:
            self._classifier.is_abandoned = True
            inspector.stop()
            self._classifier.is_abandoned = False
        return judge(work, geometry, recipe.plate)

    def _wait(self, station: Channel, loan: int, done: queue.SimpleQueue[PlateWork]) -> bool:
        """True once it is scored; meanwhile the station hears that it goes on."""
        chunks = -1
        while not self._life.is_ending:
            if self._classifier.chunks != chunks:
                chunks = self._classifier.chunks
                notify("WATCHDOG=1")
                station.send({"op": "still", "loan": loan})
            with contextlib.suppress(queue.Empty):
                done.get(timeout=_TURN_S)
                return True
        return False

    # --- rows -----------------------------------------------------------------------------------

    def _add(self, said: Json, judged: Judgement, took_ms: float, cpu_ms: float) -> None:
        grid, scores = packed(judged.scores)
        if grid != said["judged"]["tile_grid"]:
            # Never seen; a verdict on other tiles would be no comparison.
            _LOG.error("other tiles", result_id=said["judged"]["result_id"])
            return
        if self._judging != said["judging"]:
            self._end_row()
            self._judging = said["judging"]
        if not self._plates:
            self._first_at = time.monotonic()
        self._plates.append(
            ShadowedPlate(
                result_id=said["judged"]["result_id"],
                verdict=judged.verdict,
                reason=judged.reason,
                score=judged.score,
                failing_tiles=sum(is_failing(t.score, self._threshold) for t in judged.scores),
                is_same_bits=scores == said["judged"]["tile_scores"],
                took_ms=round(took_ms, 1),
                cpu_ms=round(cpu_ms, 1),
            )
        )

    def _send_due(self) -> None:
        is_due = len(self._plates) >= _ROW_PLATES
        if is_due or (self._plates and time.monotonic() - self._first_at > _ROW_S):
            self._end_row()
        if self._rows:
            self._send_rows()

    def _end_row(self) -> None:
        if not self._plates:
            return
        now, cpu_s = time.monotonic(), time.process_time()
        row = ShadowBody(
            station_id=self._settings.station.id,
            started_at=self._shadow.started_at,
            model_id=self._shadow.model_id,
            model_sha256=self._shadow.sha256,
            threshold=self._threshold,
            unsure_above=self._unsure_above,
            runtime=self._classifier.runtime,
            **self._judging,
            plates=tuple(self._plates),
            cpu_s=round(cpu_s - self._said_cpu_s, 3),
            wall_s=round(now - self._said_at, 3),
        )
        self._said_at, self._said_cpu_s = now, cpu_s
        self._plates = []
        self._rows.append(row)

    def _send_rows(self) -> None:
        """What the journal does not take now is sent again; what it refuses is said and lost."""
        try:
            if self._journal is None:
                self._journal = JournalClient(self._settings.station.runtime_dir)
                self._journal.connect(0.0)
            while self._rows:
                answer = self._journal.submit([self._rows[0]], timeout_s=10.0)
                if answer.get("is_full"):
                    return
                if not answer["ok"]:
                    _LOG.error("a row was refused", problem=answer["error"])
                self._rows.pop(0)
        except (PeerGone, TimeoutError, BlockingIOError):
            if self._journal is not None:
                self._journal.close()
                self._journal = None


@contextlib.contextmanager
def _mapped(packet: Packet) -> Iterator[Plate]:
    """The plate that is lent, its pixels for reading only. Raises `NotAMessage`."""
    if len(packet.descriptors) != 2:
        raise NotAMessage("a plate comes with its pixels and its outline")
    width = packet.body["geometry"]["scan_line_px"]
    memory = [
        mmap.mmap(descriptor, os.fstat(descriptor).st_size, prot=mmap.PROT_READ)
        for descriptor in packet.descriptors
    ]
    pixels = np.frombuffer(memory[0], np.uint8).reshape(-1, width)
    yield lent_plate(packet.body["plate"], pixels, np.frombuffer(memory[1], np.int32))
