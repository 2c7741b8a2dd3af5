"""The demo's check of a migrated guest, on a made-up host."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.commands import demo
from xen_save_helper.toolstack.commands.demo import _report
from xen_save_helper.toolstack.hosts.interface import GuestReport, GuestState
from xen_save_helper.toolstack.xl.outcome import ExitCode, GuestResult, MigrationResult, Outcome

WELL = GuestReport(
    state=GuestState.RUNNING,
    steps=10,
    pages_checked=100,
    memory_ok=True,
    crash=None,
    suspended_at=None,
    first_step_at=50.0,
    fault_count=0,
    fault_p50_us=None,
    fault_p99_us=None,
)
NOT_SEEN = GuestResult(None, None, None, None, None)
MIGRATED = MigrationResult(
    Outcome.SUCCESS, 0, "postcopy", "done", 1, 2, 3, 4.0, 0.5, 0.0, None, NOT_SEEN, ""
)


@dataclass
class MadeUp:
    """A host whose guest is found so when it has compared its memory, and so later."""

    verified: GuestReport | OSError
    later: list[GuestReport] = field(default_factory=list)

    def find(self, name: str) -> int:
        assert name == demo.GUEST
        return 7

    def verify(self, _domid: int, _limit: float) -> GuestReport:
        if isinstance(self.verified, OSError):
            raise self.verified
        return self.verified

    def report(self, _domid: int) -> GuestReport:
        return self.later.pop(0) if len(self.later) > 1 else self.later[0]


def look(host: MadeUp, complete: float | None = None) -> demo.DemoResult:
    return asyncio.run(demo.look_at(host, MIGRATED, complete))


def test_a_guest_that_runs_on() -> None:
    result = look(MadeUp(WELL, [WELL, replace(WELL, steps=11)]), complete=50.25)
    assert (result.verified, result.migration.outcome) == (True, Outcome.SUCCESS)
    assert result.first_step_lead_seconds == 0.25


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (
            MadeUp(replace(WELL, memory_ok=False), [replace(WELL, memory_ok=False, steps=11)]),
            "the guest's memory is wrong at the destination",
        ),
        (
            MadeUp(WELL, [replace(WELL, crash="page 5 is stale")]),
            "died at the destination: page 5 is stale",
        ),
        (MadeUp(WELL, [WELL]), "the guest stands still at the destination"),
        (
            MadeUp(TimeoutError("no answer"), [WELL, replace(WELL, steps=11)]),
            "cannot compare its memory at the destination: no answer",
        ),
    ],
)
def test_one_that_does_not_is_told_alike_by_all_that_tells(
    host: MadeUp,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "RUN_ON_LIMIT", 0.05)
    result = look(host)
    assert not result.verified
    code = _report(argparse.Namespace(json=True), result)
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert code == ExitCode.GUEST_DIED
    assert (told["outcome"], told["rc"]) == ("guest-died", Error.FAIL)
    assert reason in told["reason"]
    assert reason in said.err


def test_only_this_runs_trace_is_read(tmp_path: Path) -> None:
    events = tmp_path / "events"
    events.write_text("not ours\n" + json.dumps({"event": "postcopy_complete", "t": 1.0}) + "\n")
    before = events.stat().st_size
    assert demo.postcopy_complete_at(events, before) is None
    with events.open("a") as file:
        file.write("{half a line\n[1]\n\xff\n")
        file.write(json.dumps({"event": "postcopy_complete", "t": 2.0}) + "\n")
    assert demo.postcopy_complete_at(events, before) == 2.0


def test_a_trace_that_cannot_be_read_again() -> None:
    assert demo.postcopy_complete_at(Path("/dev/null"), 0) is None
