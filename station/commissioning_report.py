"""The report of a commissioning run: JSON for machines, and one HTML page that prints to PDF.

Made of the steps' files alone, so that the same steps always make the same bytes: what a person
reads is what is signed.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from station.commission_record import (
    Basis,
    Check,
    Part,
    Picture,
    Run,
    RunFolder,
    Status,
    StepResult,
)

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
_MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg"}


class Change(Part):
    """A figure or a fact that another run had otherwise."""

    step: str
    what: str
    before: str
    after: str


class Report(Part):
    """A run's steps in order, those that were not done too."""

    station_id: str
    run: Run
    basis: Basis
    titles: dict[str, str]
    steps: tuple[StepResult, ...]
    compared_with: Run | None
    """The run that `changes` are against; None where there is none."""
    changes: tuple[Change, ...]

    @property
    def open_steps(self) -> list[str]:
        """What keeps it from being signed: each step that has not passed, and why."""
        return [
            f"{step.step}: {step.status}{f' ({step.reason})' if step.reason else ''}"
            for step in self.steps
            if step.status is not Status.PASSED
        ]

    def step(self, name: str) -> StepResult:
        return next(step for step in self.steps if step.step == name)

    def as_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"


def build_report(
    station_id: str,
    folder: RunFolder,
    titles: dict[str, str],
    basis: Basis,
    before: RunFolder | None,
) -> Report:
    """The report as its files stand. `before` is the run to compare with. Raises
    `RunFolderError`."""
    done = folder.steps()
    steps = tuple(_as_it_stands(name, done.get(name), basis) for name in titles)
    earlier = before.steps() if before else {}
    return Report(
        station_id=station_id,
        run=folder.run,
        basis=basis,
        titles=titles,
        steps=steps,
        compared_with=before.run if before and earlier else None,
        changes=tuple(_changes(earlier, steps)),
    )


def _as_it_stands(name: str, step: StepResult | None, basis: Basis) -> StepResult:
    """A step that was done on something else has not been done on this."""
    if step is None:
        return _absent(name, "not run yet", basis)
    if step.basis != basis:
        changed = [key for key, value in step.basis if value != getattr(basis, key)]
        return _absent(name, f"done before {', '.join(changed)} changed: do it again", basis)
    return step


def _absent(name: str, reason: str, basis: Basis) -> StepResult:
    return StepResult(
        step=name,
        status=Status.NOT_DONE,
        reason=reason,
        who="",
        started_at="",
        finished_at="",
        basis=basis,
    )


def _changes(earlier: dict[str, StepResult], steps: Sequence[StepResult]) -> list[Change]:
    found = []
    for step in steps:
        if step.step in earlier:
            before, after = _said(earlier[step.step]), _said(step)
            found += [
                Change(
                    step=step.step,
                    what=what,
                    before=before.get(what, "–"),
                    after=after.get(what, "–"),
                )
                for what in {**before, **after}
                if before.get(what) != after.get(what)
            ]
    return found


def _said(step: StepResult) -> dict[str, str]:
    figures = {check.what: measured(check) for check in step.checks}
    return {"status": str(step.status), **step.facts, **figures}


def measured(check: Check) -> str:
    """What was measured, with its unit, for people."""
    if check.measured is None:
        return "not measured"
    unit = f" {check.unit}" if check.unit else ""
    text = check.measured if isinstance(check.measured, str) else f"{check.measured:.6g}"
    return text + unit


def html(report: Report, folder: RunFolder) -> bytes:
    """The page, with every picture inside it. Raises `RunFolderError` if a picture changed."""

    def data_uri(picture: Picture) -> str:
        media = _MEDIA_TYPES[picture.file.rsplit(".", 1)[-1]]
        return f"data:{media};base64,{base64.b64encode(folder.read_picture(picture)).decode()}"

    environment = Environment(
        loader=PackageLoader("station"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"measured": measured, "data_uri": data_uri}
    page = environment.get_template("commissioning.html").render(report=report)
    return page.encode()


def write_report(report: Report, folder: RunFolder) -> tuple[bytes, bytes]:
    """Write JSON and page into the run's folder; their bytes. Raises `RunFolderError`."""
    files = report.as_bytes(), html(report, folder)
    folder.write(REPORT_JSON, files[0])
    folder.write(REPORT_HTML, files[1])
    return files
