"""What kills a process of the fuzz, or keeps it for ever, is told with its input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import campaign
from tests.fuzz.campaign import Campaign
from tests.fuzz.worker import input_of, targets_of

DIES_AT = 13
SEED = "9"

WORKER = f"""
import json, os, signal, sys, time
seed, kind, first, step, end, path = sys.argv[1:]
place = os.open(path, os.O_RDWR)
inputs = 0
for index in range(int(first), int(end), int(step)):
    os.pwrite(place, index.to_bytes(8, "little"), 0)
    if index == {DIES_AT}:
        HOW
    inputs += 1
tally = dict(inputs=inputs, octets=8 * inputs, outcomes=dict(decoded=inputs), memory=inputs,
             slowest=0.5, slowest_index=int(first))
print(json.dumps(dict(tally=tally)))
"""


def run(tmp_path: Path, how: str, jobs: int) -> tuple[campaign.Result, list[dict[str, Any]]]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.replace("HOW", how))
    shown: list[dict[str, Any]] = []
    program = (sys.executable, str(script))
    return Campaign("messages", SEED, 40, jobs, program).run(shown.append), shown


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process ended with status -9"),
        ("os._exit(7)", "the process ended with status 7"),
        ("time.sleep(1000)", "nothing could interrupt it"),
    ],
)
def test_a_process_that_dies_or_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str, jobs: int
) -> None:
    monkeypatch.setattr(campaign, "STUCK", 4.0)
    result, shown = run(tmp_path, how, jobs)
    assert shown == result.failures
    (failure,) = result.failures
    assert what in failure["what"]
    assert (failure["index"], failure["seed"], failure["kind"]) == (DIES_AT, SEED, "messages")
    targets = targets_of("messages")
    target, data = input_of(targets, "messages", SEED, DIES_AT)
    assert (failure["target"], failure["data"]) == (target.name, data.hex())
    assert result.tally.inputs == 40, "the others were judged, too"


def test_tallies_are_added_up(tmp_path: Path) -> None:
    result, shown = run(tmp_path, "pass", 3)
    assert (result.failures, shown) == ([], [])
    assert (result.tally.inputs, result.tally.octets) == (40, 320)
    assert result.tally.outcomes == {"decoded": 40}
    assert (result.tally.memory, result.tally.slowest) == (14, 0.5)


def test_a_process_that_never_begins_is_no_failure_of_an_input() -> None:
    program = (sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="before its first input"):
        Campaign("messages", SEED, 4, 1, program).run(lambda _: None)
