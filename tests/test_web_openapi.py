"""The page's own description of its interface, taken at its word: whatever it allows to be sent is
answered, and answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from web_rig import PageClient, WebRig, running_journal, web_rig

from station.web.roles import Role

schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis here")

_EXAMPLES = 15
_STREAMS = "text/event-stream"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebRig]:
    with web_rig(tmp_path_factory.mktemp("openapi")) as rig, running_journal(rig.station):
        yield rig


@pytest.mark.long
def test_whatever_the_description_allows_is_answered_as_it_says(rig: WebRig) -> None:
    """Each operation with values drawn from its schema, by an admin with a good token."""
    client = rig.client_of(Role.ADMIN)
    headers = {"origin": rig.url, "x-csrf-token": client.token()}
    headers["cookie"] = "; ".join(f"{one.name}={one.value}" for one in client.cookies.jar)
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.config.update(base_url=rig.url)
    faults = [
        fault
        for found in schema.get_all_operations()
        if not _streams(found.ok()) and (fault := _tried(found.ok(), headers))
    ]
    assert not faults


def _streams(operation: Any) -> bool:
    """An event stream does not end."""
    return _STREAMS in str(operation.definition.raw.get("responses", {}))


def _tried(operation: Any, headers: dict[str, str]) -> str:
    """The first fault of one operation; empty if there is none."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance

    @hypothesis.settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=operation.as_strategy())
    def answered(case: Any) -> None:
        case.call_and_validate(
            headers=headers, checks=[not_a_server_error, response_schema_conformance], timeout=20
        )

    try:
        answered()
    except Exception as error:  # noqa: BLE001  whatever it found, all of them are shown at the end
        return f"{operation.label}: {str(error)[:400]}"
    return ""


def test_the_description_names_every_twin_and_action(rig: WebRig) -> None:
    """What is not in there cannot be scripted against."""
    described = PageClient(rig).get("/openapi.json").json()["paths"]
    for route in rig.web.routes:
        if route.is_json or route.kind == "data":
            path = route.path.replace(":path}", "}")
            assert route.method.lower() in described.get(path, {}), (route.method, route.path)
