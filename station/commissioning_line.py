"""Commissioning steps on the whole line: light, station, and what it decides."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drivers.camera.picture import PictureError, read_grey_picture
from drivers.stacklight import LightState, StackLight, open_stack_light
from station.chart import line_chart
from station.commissioning import (
    Bench,
    Capture,
    Findings,
    NotDone,
    StepFailed,
)
from station.commissioning_camera import first_look
from station.ipc import Json
from station.limit_samples import SAMPLES_FILE, Sample, SamplesError, read_list
from station.log_reader import Reader
from station.log_verify import verify
from station.msa import (
    EFFECTIVENESS,
    FALSE_ALARM_RATE,
    KAPPA,
    MIN_PARTS,
    MIN_RUNS,
    MISS_RATE,
    Estimate,
    Limits,
    MsaError,
    Rating,
    Study,
    evaluate,
    read_study,
)
from station.offline import PictureInspector
from station.precision import load_classifier
from station.qms import IMAGES
from station.record import Verdict, score_text, utc_now

DRY_RUN_PLATES = 200
_UNDECIDED_SHARE = 0.01
_DRY_RUN_LIMIT_S = 4 * 3600.0
_STATE_S = 1.0
"""A light state is shown this long before its confirmation is asked for."""


# --- lamp and I/O ---------------------------------------------------------------------------------

_SHOWN = tuple(state for state in LightState if state is not LightState.PASS)


def lamp(bench: Bench, found: Findings) -> None:
    """Every state is shown and seen, but the production pass, which takes a production plate; and
    the inputs count while the belt runs."""
    table = bench.settings.light.pattern_table
    with open_stack_light(bench.settings.light.device, table) as device:
        found.facts["device"] = device.description
        try:
            for state in _SHOWN:
                _check_state(bench, found, device, state)
        finally:
            device.show(LightState.FAULT)
    found.note(f"{LightState.PASS} is shown for production plates only; the lamp test lights green")
    _check_inputs(found, first_look(bench))


def _check_state(bench: Bench, found: Findings, device: StackLight, state: LightState) -> None:
    pattern = bench.settings.light.pattern_table[state]
    words = ", ".join(f"{element} {mode}" for element, mode in pattern.items()) or "all off"
    if device.show(state):
        found.check(f"light {state}", words, words, True)
        found.note(f"{state}: read back")
        return
    time.sleep(_STATE_S if bench.answers.ask is not None else 0.0)
    is_seen, how = bench.answers.confirm(f"light_{state}", f"Does the light show {words}?")
    found.check(f"light {state}", words if is_seen else "not seen", words, is_seen)
    found.note(f"{state}: {how}")


def _check_inputs(found: Findings, taken: Capture) -> None:
    """What the frames say of encoder and plate trigger."""
    frames = [frame for frame in taken.frames if not frame.is_incomplete]
    encoder = [frame.encoder_value for frame in frames if frame.encoder_value is not None]
    counter = [frame.plate_counter for frame in frames if frame.plate_counter is not None]
    for name, values in (("encoder", encoder), ("plate counter", counter)):
        if len(values) < 2:
            found.facts[name] = "not delivered with the frames"
            continue
        moved = values[-1] - values[0]
        found.check(f"{name} counts", float(moved), "> 0, the belt runs", moved > 0)


# --- dry run --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ended:
    """How the station's run ended."""

    status: int
    summary: Json
    last_words: str


def dry_run(bench: Bench, found: Findings) -> None:
    """The station itself on this configuration: every plate has its record and its light."""
    since, wanted = utc_now(), bench.dry_run_plates
    ended = _run_station(bench)
    summary = ended.summary
    if not summary:
        raise StepFailed(f"the station did not run: {ended.last_words or 'it said nothing'}")
    found.check("exit status", float(ended.status), "0", ended.status == 0)
    found.check(
        "plates",
        float(summary["plates"]),
        f">= {DRY_RUN_PLATES}",
        summary["plates"] >= max(wanted, DRY_RUN_PLATES),
    )
    for key in ("lost_frames", "incomplete_frames", "gaps", "camera_restarts"):
        found.check(key.replace("_", " "), float(summary[key]), "0", summary[key] == 0)
    _check_latency(bench, found, summary)
    undecided = summary["undecided"] / max(1, summary["plates"])
    limit = f"<= {100 * _UNDECIDED_SHARE:g} %"
    found.check("undecided", 100 * undecided, limit, undecided <= _UNDECIDED_SHARE, "%")
    for key in ("pass", "fail", "undecided", "frames", "tiles", "mb_per_s", "peak_rss_mb"):
        found.facts[key.replace("_", " ")] = str(summary[key])
    for key in ("truly_defective", "truly_good", "escapes", "false_rejects"):
        if key in summary:
            found.facts[key.replace("_", " ")] = str(summary[key])
    _check_conservation(bench, found, since)


def _run_station(bench: Bench) -> _Ended:
    """`vqi run` as an operator would start it."""
    command = [sys.executable, "-P", "-m", "station.cli", "run"]
    command += ["--config", bench.configuration.source, "--json"]
    command += ["--plates", str(bench.dry_run_plates), "--seconds", str(_DRY_RUN_LIMIT_S)]
    summary: Json = {}
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words
        )
        try:
            assert process.stdout is not None
            for number, line in enumerate(process.stdout, start=1):
                row = json.loads(line)
                summary = row.get("summary", summary)
                if number % 20 == 0:
                    bench.say(f"      {number} plates")
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        words.seek(0)
        last = words.read().decode(errors="replace").strip().splitlines()[-1:]
    return _Ended(status, summary, "".join(last))


def _check_latency(bench: Bench, found: Findings, summary: Json) -> None:
    deadline_ms = 1000 * bench.recipe.value.deadline_s
    for key in ("p50", "p99", "max"):
        value = summary["latency_ms"][key]
        is_ok = value is not None and value <= deadline_ms
        found.check(f"latency {key}", value, f"<= {deadline_ms:g} ms", is_ok, "ms")


def _check_conservation(bench: Bench, found: Findings, since: str) -> None:
    """Plates triggered = records = light commands, as the log says it."""
    with Reader(bench.settings.journal.directory) as reader:
        opened, results, acted = (
            list(reader.bodies(kind, since)) for kind in ("opened", "result", "actuation")
        )
        report = verify(reader, with_images=False, with_file=False)
    plates = [row for row in results if row["reason"] != "gap"]
    ids = Counter(row["result_id"] for row in results)
    is_once = max(ids.values(), default=0) == 1
    is_all = {row["result_id"] for row in opened} == {row["result_id"] for row in plates}
    found.check("opened plates", float(len(opened)), "one record each", is_once and is_all)
    commands = Counter(row["result_id"] for row in acted)
    found.check("light commands", float(len(acted)), "one for each record", commands == ids)
    late = sum(row["command"] == "withheld_late" for row in acted)
    found.check("passes withheld for lateness", float(late), "0", late == 0)
    _check_counter(found, plates, results)
    findings = "; ".join(report.findings[:1]) or "verified"
    found.check("log", findings, "verified", not report.findings)
    _show_run(bench, found, plates, acted)


def _check_counter(found: Findings, plates: list[Json], results: list[Json]) -> None:
    ordinals = [row["plate_ordinal"] for row in plates]
    if not ordinals or None in ordinals:
        found.note("the camera counts no plates: that none passed unseen rests on the frame ids")
        return
    unseen = sum(row["triggers"] or 0 for row in results if row["reason"] == "gap")
    passed = max(ordinals) - min(ordinals) + 1
    answered = len(set(ordinals)) + unseen
    found.check("plates by the trigger", float(passed), f"{answered} answered", passed == answered)


def _show_run(bench: Bench, found: Findings, plates: list[Json], acted: list[Json]) -> None:
    commanded = {row["result_id"]: row["commanded_ns"] for row in acted if row["commanded_ns"]}
    latencies = [
        (commanded[row["result_id"]] - row["last_scan_line_ns"]) / 1e6
        for row in plates
        if row["last_scan_line_ns"] and row["result_id"] in commanded
    ]
    if latencies:
        chart = line_chart(
            "Last scan line to light command", "plate", "ms", {"latency": np.array(latencies)}
        )
        found.picture("latency.svg", chart, "Latency of each plate")
    reasons = Counter(f"{row['reason']}" for row in plates if row["reason"])
    if reasons:
        found.note("undecided: " + ", ".join(f"{n} x {why}" for why, n in reasons.most_common()))
    images = bench.settings.journal.directory / IMAGES
    for verdict in Verdict:
        for data in _preview(images, plates, verdict):
            found.picture(f"{verdict}.jpg".lower(), data, f"The last plate with verdict {verdict}")


def _preview(images: Path, plates: list[Json], verdict: Verdict) -> Iterator[bytes]:
    """The last preview of a verdict, if one was kept."""
    for row in reversed(plates):
        for image in row["images"] if row["verdict"] == verdict else ():
            if image["role"] == "preview":
                yield (images / image["path"]).read_bytes()
                return


# --- limit samples --------------------------------------------------------------------------------


def limit_samples(bench: Bench, found: Findings) -> None:
    """Pictures of plates at the limit get the verdicts that were agreed for them."""
    path = Path(bench.answers.text("limit_samples", f"folder with {SAMPLES_FILE}, or that file"))
    samples = _read_samples(path / SAMPLES_FILE if path.is_dir() else path)
    classifier = load_classifier(bench.configuration, bench.recipe, 1).classifier
    pitch_mm = bench.settings.camera.pixel_pitch_mm
    inspector = PictureInspector(bench.recipe, classifier, pitch_mm, 1)
    for verdict in (Verdict.PASS, Verdict.FAIL):
        count = sum(one.expected is verdict for one in samples)
        found.check(f"samples that must be {verdict}", float(count), ">= 1", count >= 1)
    for one in samples:
        _check_sample(found, inspector, one.path, one.expected)


def _check_sample(
    found: Findings, inspector: PictureInspector, file: Path, wanted: Verdict
) -> None:
    try:
        pixels = read_grey_picture(file)
        judged = inspector.inspect(pixels)
    except (PictureError, ValueError) as error:
        found.check(f"sample {file.name}", str(error), str(wanted), False)
        return
    score = "" if judged.score is None else f" {score_text(judged.score)}"
    reason = f" ({judged.reason}: {judged.detail})" if judged.reason else ""
    is_ok = judged.verdict is wanted
    found.check(f"sample {file.name}", f"{judged.verdict}{score}{reason}", str(wanted), is_ok)
    if not is_ok:
        found.show_pixels(f"wrong-{file.stem}", pixels, f"{file.name}: {judged.verdict}")


def _read_samples(path: Path) -> list[Sample]:
    try:
        return read_list(path)
    except FileNotFoundError as error:
        raise NotDone(f"{path}: no such file; it lists limit samples: file,expected") from error
    except SamplesError as error:
        raise StepFailed(str(error)) from error


# --- attribute study ------------------------------------------------------------------------------


def msa(bench: Bench, found: Findings) -> None:
    """The attribute study of re-presented plates reaches AIAG's acceptable grade."""
    path = Path(bench.answers.text("msa_csv", "CSV with part,run,reference,verdict"))
    if not path.exists():
        raise NotDone(f"{path}: no such file")
    try:
        study = evaluate(read_study(path))
    except MsaError as error:
        raise StepFailed(str(error)) from error
    found.check("parts", float(study.parts), f">= {MIN_PARTS}", study.parts >= MIN_PARTS)
    found.check("runs", float(study.runs), f">= {MIN_RUNS}", study.runs >= MIN_RUNS)
    figures = (
        ("effectiveness", study.effectiveness, EFFECTIVENESS),
        ("miss rate", study.miss_rate, MISS_RATE),
        ("false-alarm rate", study.false_alarm_rate, FALSE_ALARM_RATE),
        ("kappa", study.kappa, KAPPA),
    )
    for name, estimate, limits in figures:
        _check_figure(found, study, name, estimate, limits)
    found.facts |= {
        "good parts": str(study.good_parts),
        "defective parts": str(study.defective_parts),
        "repeatability": f"{study.repeatability.value:.1%}",
    }
    if study.wrong:
        found.note(f"decided wrongly at least once: {', '.join(study.wrong)}")


def _check_figure(
    found: Findings, study: Study, name: str, estimate: Estimate, limits: Limits
) -> None:
    scale, unit = (1.0, "") if limits is KAPPA else (100.0, "%")
    sign = ">=" if limits.is_high_good else "<="
    suffix = f" {unit}" if unit else ""
    rating = study.ratings[name]
    found.check(
        name,
        scale * estimate.value,
        f"{sign} {scale * limits.acceptable:g}{suffix} (marginal {sign} "
        f"{scale * limits.marginal:g}{suffix})",
        rating is Rating.ACCEPTABLE,
        unit,
    )
    found.facts[f"{name}, 95 % interval"] = (
        f"{scale * estimate.low:.3g} to {scale * estimate.high:.3g}{suffix}"
    )
    found.facts[f"{name}, AIAG"] = str(rating)
