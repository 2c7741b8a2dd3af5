"""A short fuzz, with a new seed each time; the long one is `python -m tests.fuzz` (see the
package)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import processes_under
from tests.helper.hypervisors.simulated.guests import wait_for

ROOT = Path(__file__).parents[2]
MESSAGES, RECORDS = 60_000, 24_000


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.long
@pytest.mark.timeout(300)
def test_all_that_must_hold_holds() -> None:
    ended = fuzz("--messages", str(MESSAGES), "--records", str(RECORDS))
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{MESSAGES} messages in" in ended.stdout
    assert f"{RECORDS} records in" in ended.stdout


@pytest.mark.long
def test_a_seed_makes_the_same_inputs_again_in_any_number_of_processes() -> None:
    def outcomes(jobs: str) -> dict[str, object]:
        ended = fuzz(
            "--messages", "600", "--records", "300", "--seed", "7", "--jobs", jobs, "--json"
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        kinds = json.loads(ended.stdout)["kinds"]
        return {kind: (tally["outcomes"], tally["octets"]) for kind, tally in kinds.items()}

    assert outcomes("1") == outcomes("2")


def test_one_input_is_made_again_and_shown() -> None:
    first, again = (fuzz("--seed", "7", "--only", "messages:11") for _ in range(2))
    assert first.returncode == 0
    name, octets, outcome = first.stdout.splitlines()
    assert f"{len(bytes.fromhex(octets))} octets" in name
    assert outcome
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    "arguments", [("--only", "messages:1"), ("--seed", "1", "--only", "pages:1"), ("--jobs", "0")]
)
def test_usage(arguments: tuple[str, ...]) -> None:
    assert fuzz(*arguments).returncode == 2


def test_one_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz", "--messages", "0", "--records", "1000000"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: any(tmp_path.glob("fuzz-*/0/fuzz-*/host/domains/1")), "a domain is there")
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.iterdir()) == []
    assert processes_under(tmp_path) == []
