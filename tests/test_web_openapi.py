"""The page's own description of its interface, taken at its word: whatever it allows to be sent is
answered, and answered as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from web_rig import WebRig, running_journal, web_rig

from station.roles import Role

schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis here")
requests = pytest.importorskip("requests", reason="no schemathesis here")

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
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.config.update(base_url=rig.url)
    with requests.Session() as session:
        session.headers.update({"origin": rig.url, "x-csrf-token": client.token()})
        session.cookies.update({one.name: one.value or "" for one in client.cookies.jar})
        operations = [found.ok() for found in schema.get_all_operations()]
        faults = [_tried(one, session) for one in operations if not _streams(one)]
    assert not any(faults), [fault for fault in faults if fault]


def _streams(operation: Any) -> bool:
    """An event stream does not end."""
    return _STREAMS in str(operation.definition.raw.get("responses", {}))


def _tried(operation: Any, session: Any) -> str:
    """The first fault of one operation; empty if there is none."""
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
        # Health says 503 in its own words, which monitors read.
        is_described = operation.path != "/health"
        checks = [_answered_on_purpose, *([response_schema_conformance] if is_described else [])]
        case.call_and_validate(session=session, checks=checks, timeout=20)

    try:
        answered()
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  the others are tried as well
        return f"{operation.label}: {str(error)[:400]}"
    return ""


def _answered_on_purpose(_: Any, response: Any, __: Any) -> None:
    """503 says what does not run; any other such status is a fault of the page."""
    assert response.status_code < 500 or response.status_code == 503, response.status_code


def test_the_description_names_every_twin_and_action(rig: WebRig) -> None:
    """What is not in there cannot be scripted against."""
    described = rig.client().get("/openapi.json").json()["paths"]
    for route in rig.web.routes:
        if route.is_json or route.kind == "data":
            path = route.path.replace(":path}", "}")
            assert route.method.lower() in described.get(path, {}), (route.method, route.path)
