"""A short fuzz, with a new seed each time; the long one is `python -m tests.fuzz` (see the
package)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.timeout(300)
def test_all_that_must_hold_holds() -> None:
    ended = fuzz("--messages", str(MESSAGES), "--records", str(RECORDS))
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{MESSAGES} messages in" in ended.stdout
    assert f"{RECORDS} records in" in ended.stdout


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
