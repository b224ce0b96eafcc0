"""`vqi light`: show a state or test the lamp, through the lamp process where one runs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from drivers.errors import DeviceError
from drivers.stacklight import LightState, StackLight, open_stack_light
from station.cli.common import ConfigOption, fail, load_or_exit
from station.config import Configuration
from station.ipc import NotPermitted, PeerGone
from station.lamp import LampClient, LampError
from station.lease import LAMP_TEST_S
from station.lock import LAMP_LOCK, STATION_LOCK, take_lock
from station.outputs import switch_off

app = typer.Typer(no_args_is_help=True)

_LEASE_S = 1.0
_RENEWAL_S = 0.25


@app.command()
def show(
    state: Annotated[LightState, typer.Argument(help="What the light is to mean.")],
    config: ConfigOption,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600.0, help="How long.")] = 5.0,
) -> None:
    """Show a state for some seconds, then FAULT. FAULT itself is written once, at once, and where
    no lamp process runs, PLC and accept outputs go off with it.

    Not while a station holds the lamp. PASS needs a plate; `vqi light test` lights green too.
    """
    if state is LightState.PASS:
        raise typer.BadParameter(
            "pass is for production plates only; `vqi light test` lights green too, and "
            f"{LightState.PASS_NOT_PRODUCTION} shows the pattern of other passing plates"
        )
    if state is LightState.LAMP_TEST:
        raise typer.BadParameter("use `vqi light test`")
    if state is LightState.FAULT:
        seconds = 0.0
    settings = load_or_exit(config).value
    _through_lamp_or_device(
        settings,
        lambda lamp: _renew(lamp, state, seconds),
        lambda device: _show_then_fault(device, state, seconds),
        lambda: _fail_if(switch_off(settings)) if state is LightState.FAULT else None,
    )
    typer.echo(f"{state} was shown for {seconds:g} s, fault is" if seconds else "fault is shown")


@app.command()
def test(config: ConfigOption) -> None:
    """Light all elements for a moment, then FAULT. Not while a station holds the lamp."""
    settings = load_or_exit(config).value
    _through_lamp_or_device(
        settings,
        LampClient.test,
        lambda device: _show_then_fault(device, LightState.LAMP_TEST, LAMP_TEST_S),
    )
    elements = ", ".join(settings.light.pattern_table[LightState.LAMP_TEST])
    typer.echo(f"lamp test sent to {elements}; did all of them light up?")
    typer.echo(f"this light is {settings.light.device.nature}")


def _through_lamp_or_device(
    settings: Configuration,
    with_lamp: Callable[[LampClient], None],
    with_device: Callable[[StackLight], None],
    after_device: Callable[[], None] = lambda: None,
) -> None:
    """Ask the lamp process if one runs, else open the device; exit status 1 if it fails.
    `after_device`: once the device is released, whether it did what it was told or not."""
    try:
        with LampClient(settings.station.runtime_dir) as lamp:
            try:
                lamp.connect(timeout_s=0.0)
            except NotPermitted:
                raise
            except PeerGone:
                with _alone(settings):
                    try:
                        _with_device(settings, with_device)
                    finally:
                        after_device()
                return
            with_lamp(lamp)
    except DeviceError as error:
        fail(f"light.device: {error}")
    except LampError as error:
        fail(str(error))
    except NotPermitted as error:
        fail(str(error))
    except (PeerGone, TimeoutError) as error:
        fail(f"the lamp process went away or hangs ({error}); see its log")


@contextlib.contextmanager
def _alone(settings: Configuration) -> Iterator[None]:
    """No lamp process opens the device meanwhile, and no plates run: a lamp process that is just
    being replaced must find the device free."""
    with contextlib.ExitStack() as locks:
        for name, who in ((LAMP_LOCK, "a lamp process"), (STATION_LOCK, "a station")):
            path = settings.station.runtime_dir / name
            try:
                lock = take_lock(path, wait_s=0.0)
            except OSError as error:
                fail(f"station.runtime_dir: {path} cannot be used: {error.strerror}")
            if lock is None:
                fail(f"{who} runs here, and the light is not free; try again in a moment")
            locks.callback(os.close, lock)
        yield


def _with_device(settings: Configuration, action: Callable[[StackLight], None]) -> None:
    """Raises `DeviceError`."""
    light = settings.light
    with (
        open_stack_light(light.device, light.pattern_table, light.buzzer_s) as device,
        _exit_on_sigterm(),
    ):
        action(device)


def _fail_if(problems: list[str]) -> None:
    if problems:
        fail("; ".join(problems))


def _renew(lamp: LampClient, state: LightState, seconds: float) -> None:
    """Keep `state` alive for `seconds`; it lapses to FAULT. Raises `LampError` if not shown."""
    deadline = time.monotonic() + seconds
    while True:
        lease_s = min(_LEASE_S, max(0.1, deadline - time.monotonic()))
        lamp.send_show(state, "", None, lease_s)
        if not select.select([lamp], [], [], 2.0)[0]:
            raise TimeoutError("no answer within 2 s")
        for answer in lamp.receive_ready():
            if not answer.is_shown:
                raise LampError(f"{state} is not shown: {answer.reason}")
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return
        time.sleep(min(_RENEWAL_S, left_s))


def _show_then_fault(device: StackLight, state: LightState, seconds: float) -> None:
    """Also when interrupted: such a light latches, and nobody would put it out."""
    try:
        device.show(state)
        time.sleep(seconds)
    finally:
        device.show(LightState.FAULT)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
