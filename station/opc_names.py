"""A result under the names of OPC 40100-1 (ResultDataType, 12.17), for exports. Pure.

Ids are the standard's structures: `{"Id": ...}`, and for what is a file its version and hash too
(BinaryIdBaseDataType, 12.8). Times are UTC as RFC 3339 text, durations milliseconds (Duration,
OPC 10000-3). What the record does not know is None, never left out.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from station.record import Reason, Verdict, rfc3339

Json = dict[str, Any]

COMPLETED, ABORTED, FAILED = 1, 3, 4
"""ResultStateDataType, 12.19."""
EVALUATIONS = {Verdict.PASS: "OK", Verdict.FAIL: "NotOK", Verdict.UNDECIDED: "NotDecidable"}
"""ResultEvaluationEnum, OPC 40001-101."""
_STOPPED = {Reason.INTERRUPTED, Reason.BELT_STOPPED, Reason.HALTED}
_NAMED = {
    "result_id": "ResultId",
    "is_simulated": "IsSimulated",
    "part_id": "PartId",
    "job_id": "MeasId",
    "recipe_id": "InternalRecipeId",
    "recipe_version": "InternalRecipeId",
    "recipe_sha256": "InternalRecipeId",
    "configuration_sha256": "InternalConfigurationId",
    "written_at": "CreationTime",
    "opened_ns": "ProcessingTimes",
    "last_scan_line_ns": "ProcessingTimes",
    "decided_ns": "ProcessingTimes",
}
"""Our fields that have names of the standard; all others are in ResultContent under their own."""


def opc_result(body: Json) -> Json:
    """A result row's body, as in the log or as `vqi log list --json` gives it."""
    return {
        "ResultId": {"Id": body["result_id"]},
        "HasTransferableDataOnFile": bool(body.get("images")),
        "IsPartial": False,
        "IsSimulated": body["is_simulated"],
        "ResultState": _state(body),
        "MeasId": _id(body.get("job_id")),
        "PartId": _id(body.get("part_id")),
        "ExternalRecipeId": None,
        "InternalRecipeId": {
            "Id": body["recipe_id"],
            "Version": str(body["recipe_version"]),
            **_hash(body["recipe_sha256"]),
        },
        "ProductId": None,
        "ExternalConfigurationId": None,
        "InternalConfigurationId": {
            "Id": body["station_id"],
            **_hash(body["configuration_sha256"]),
        },
        # Each plate is an execution of its own.
        "JobId": {"Id": body["result_id"]},
        "CreationTime": body["written_at"],
        "ProcessingTimes": _times(body),
        "ResultContent": [_content(body)],
    }


def _state(body: Json) -> int:
    if body["verdict"] != Verdict.UNDECIDED:
        return COMPLETED
    return ABORTED if body["reason"] in _STOPPED else FAILED


def _id(value: str | None) -> Json | None:
    return None if value is None else {"Id": value}


def _hash(sha256: str) -> Json:
    return {"Hash": sha256, "HashAlgorithm": "SHA-256"}


def _times(body: Json) -> Json | None:
    """None for a plate of an earlier life of the station: its clock may have been another."""
    if body["reason"] == Reason.INTERRUPTED:
        return None
    ended, opened_ns, decided_ns = body["written_at"], body["opened_ns"], body["decided_ns"]
    took = timedelta(microseconds=(decided_ns - opened_ns) / 1000)
    last_ns = body["last_scan_line_ns"]
    return {
        "StartTime": rfc3339(datetime.fromisoformat(ended) - took),
        "EndTime": ended,
        "AcquisitionDuration": None if last_ns is None else (last_ns - opened_ns) / 1e6,
        "ProcessingDuration": None if last_ns is None else (decided_ns - last_ns) / 1e6,
    }


def _content(body: Json) -> Json:
    rest = {name: value for name, value in body.items() if name not in _NAMED}
    return rest | {"verdict": EVALUATIONS[Verdict(body["verdict"])]}
