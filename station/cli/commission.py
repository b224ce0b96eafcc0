"""`vqi commission`: a guided run of acceptance steps, its report, and the signature."""

from __future__ import annotations

import contextlib
import getpass
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from drivers.camera.gentl import producer_path, sha256_of
from drivers.camera.settings import CameraSettings, GenicamCameraSettings
from drivers.errors import DeviceError
from models.card import ModelError, read_card
from station.cli.common import (
    ConfigOption,
    JsonOption,
    exit_on_config_error,
    fail,
    load_or_exit,
    print_json,
)
from station.commission_record import (
    Basis,
    Run,
    RunFolder,
    RunFolderError,
    Status,
    StepResult,
)
from station.commissioning import Answers, Bench, Step, run_step
from station.commissioning_line import DRY_RUN_PLATES
from station.commissioning_report import REPORT_HTML, Report, build_report, write_report
from station.commissioning_steps import STEPS
from station.config import EX_CONFIG, Configuration, Loaded, Recipe
from station.model_signatures import UnsignedModel
from station.model_store import ModelStore, judge_folder
from station.product import load_product, model_folder
from station.signing import SigningError, sign_report, station_stopped, verify_signature

app = typer.Typer(invoke_without_command=True)

RunOption = Annotated[Run, typer.Option("--run", help="Which acceptance test.")]
FolderOption = Annotated[
    Path | None,
    typer.Option(help="Where the runs are kept; default: commissioning in the journal's folder."),
]
_TITLES = {step.name: step.title for step in STEPS}


@app.callback()
def commission(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Option("--config", envvar="VQI_CONFIG", metavar="FILE", help="Configuration file."),
    ] = None,
    run: RunOption = Run.FAT,
    step: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this step, also if it has passed: {', '.join(_TITLES)}."),
    ] = None,
    who: Annotated[str | None, typer.Option(help="Who does the steps; default: the user.")] = None,
    folder: FolderOption = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers given in advance, TOML.")
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="One more of them.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm everything in advance.")] = False,
    plates: Annotated[
        int, typer.Option(min=1, help="Plates of the dry run; fewer than 200 do not pass it.")
    ] = DRY_RUN_PLATES,
    is_json: JsonOption = False,
) -> None:
    """Do the steps that have not passed yet, one after another; write the report."""
    if context.invoked_subcommand is not None:
        return
    if config is None:
        fail("name the configuration: --config FILE", 2)
    wanted = _chosen(step)
    given = Answers(_answers(answers, answer), yes, _prompt if sys.stdin.isatty() else None)
    with exit_on_config_error(), _errors():
        bench = _bench(config, run, folder, given, who or getpass.getuser(), plates, is_json)
        report = _go(bench, wanted, is_again=bool(step), is_json=is_json)
        write_report(report, bench.folder)
    _say_end(report, bench.folder, is_json)
    raise typer.Exit(1 if report.open_steps else 0)


@app.command("sign")
def sign_(
    config: ConfigOption,
    who: Annotated[str, typer.Option(help="Who signs; stands in the file and in the log.")],
    run: RunOption = Run.SAT,
    folder: FolderOption = None,
    is_json: JsonOption = False,
) -> None:
    """Sign a run whose every step has passed: its camera's plates become production."""
    if not who.strip():
        raise typer.BadParameter("a name is wanted", param_hint="--who")
    loaded = load_or_exit(config)
    with exit_on_config_error(), _errors():
        recipe = load_product(loaded)
        kept, before = _folders(loaded.value, folder, run)
        basis = _basis(loaded, recipe)
        report = build_report(loaded.value.station.id, kept, _TITLES, basis, before)
        signed = sign_report(loaded, report, kept, who)
        model = judge_folder(loaded.value, model_folder(recipe, ModelStore.of(loaded.value)))
    lack = model.why if isinstance(model, UnsignedModel) else ""
    if is_json:
        print_json(
            {"file": str(signed.path), "sha256": signed.sha256, "row": signed.row, "who": who,
             "model_problem": lack}
        )  # fmt: skip
        return
    typer.echo(f"{signed.path} signed by {who}: sha256 {signed.sha256}, row {signed.row}")
    if lack:
        typer.echo(f"notice: no plate is production yet: {lack}")


@app.command()
def verify(config: ConfigOption, folder: FolderOption = None, is_json: JsonOption = False) -> None:
    """Hold the commissioning file against the log, and the report against the file."""
    loaded = load_or_exit(config)
    with _errors():
        found = verify_signature(loaded.value, _directory(loaded.value, folder))
    if is_json:
        print_json({"signed": found.signed, "findings": list(found.findings)})
    else:
        for key, value in found.signed.items():
            typer.echo(f"{key:22} {value}")
        for finding in found.findings:
            typer.echo(f"FAIL  {finding}")
    raise typer.Exit(1 if found.findings else 0)


def _chosen(names: list[str] | None) -> list[Step]:
    unknown = [name for name in names or () if name not in _TITLES]
    if unknown:
        raise typer.BadParameter(f"no step {unknown[0]}; there are: {', '.join(_TITLES)}")
    return [step for step in STEPS if not names or step.name in names]


def _answers(file: Path | None, pairs: list[str] | None) -> dict[str, str]:
    given: dict[str, str] = {}
    if file is not None:
        try:
            given = {key: _text(value) for key, value in tomllib.loads(file.read_text()).items()}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            fail(f"{file}: not answers that can be read: {error}", 2)
    for pair in pairs or ():
        key, separator, value = pair.partition("=")
        if not separator:
            raise typer.BadParameter(f"{pair!r} is no KEY=VALUE")
        given[key.strip()] = value.strip()
    return given


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prompt(question: str) -> str:
    answer: str = typer.prompt(question, default="", show_default=False, err=True)
    return answer


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        fail(str(error), EX_CONFIG)
    except (RunFolderError, SigningError) as error:
        fail(str(error))


def _directory(settings: Configuration, given: Path | None) -> Path:
    return given or settings.journal.directory / "commissioning"


def _folders(
    settings: Configuration, given: Path | None, run: Run
) -> tuple[RunFolder, RunFolder | None]:
    """The run's folder, and that of the run which it is compared with."""
    directory = _directory(settings, given)
    return RunFolder(directory, run), RunFolder(directory, Run.FAT) if run is Run.SAT else None


def _basis(loaded: Loaded[Configuration], recipe: Loaded[Recipe]) -> Basis:
    card = read_card(model_folder(recipe, ModelStore.of(loaded.value)))
    return Basis(
        configuration_sha256=loaded.sha256,
        recipe_id=recipe.value.id,
        recipe_version=recipe.value.version,
        recipe_sha256=recipe.sha256,
        model_id=card.id,
        model_sha256=card.sha256,
        producer_sha256=_producer_sha256(loaded.value.camera),
    )


def _producer_sha256(camera: CameraSettings) -> str:
    """A producer that is not there is the camera step's to say."""
    if isinstance(camera, GenicamCameraSettings):
        with contextlib.suppress(DeviceError, OSError):
            return sha256_of(producer_path(camera.producer))
    return "none"


def _bench(
    config: str,
    run: Run,
    folder: Path | None,
    answers: Answers,
    who: str,
    plates: int,
    is_json: bool,
) -> Bench:
    loaded = load_or_exit(config)
    recipe = load_product(loaded)
    kept, before = _folders(loaded.value, folder, run)
    return Bench(
        configuration=loaded,
        recipe=recipe,
        basis=_basis(loaded, recipe),
        folder=kept,
        before=before,
        answers=answers,
        who=who,
        say=lambda text: typer.echo(text, err=is_json),
        dry_run_plates=plates,
    )


def _go(bench: Bench, wanted: list[Step], is_again: bool, is_json: bool) -> Report:
    done = bench.folder.steps()
    for step in wanted:
        known = done.get(step.name)
        is_passed = known is not None and known.status is Status.PASSED
        if is_passed and known is not None and known.basis == bench.basis and not is_again:
            bench.say(f"{step.title}: passed {known.finished_at[:19]} by {known.who}")
            continue
        bench.say(f"{step.title} ({step.name}): {_first_sentence(step)}")
        _say_step(_do(bench, step), bench, is_json)
    return build_report(bench.settings.station.id, bench.folder, _TITLES, bench.basis, bench.before)


def _first_sentence(step: Step) -> str:
    return " ".join((step.do.__doc__ or "").split("\n\n")[0].split())


def _do(bench: Bench, step: Step) -> StepResult:
    if step.runs_the_station:
        return run_step(bench, step)
    with station_stopped(bench.settings):
        return run_step(bench, step)


def _say_step(result: StepResult, bench: Bench, is_json: bool) -> None:
    if is_json:
        print_json({"step": result.step, "status": str(result.status), "reason": result.reason,
                    "checks": [check.model_dump() for check in result.checks]})  # fmt: skip
    reason = f": {result.reason}" if result.reason else ""
    bench.say(f"  {result.status}{reason}\n")


def _say_end(report: Report, folder: RunFolder, is_json: bool) -> None:
    path, opened = folder.path / REPORT_HTML, report.open_steps
    if is_json:
        print_json({"report": str(path), "is_signable": not opened, "open": opened})
        return
    typer.echo(f"report: {path}")
    for line in opened:
        typer.echo(f"open: {line}")
    if not opened:
        typer.echo("every step has passed; sign it: vqi commission sign --who NAME")
