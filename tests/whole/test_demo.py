"""The demo in every mode: the guest never stops checking its memory, finds no wrong page, and runs
on at the destination; at the end all its memory has been compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toolstack.stage import toolstack
from xen_save_helper.toolstack.commands.demo import MODES

pytestmark = pytest.mark.usefixtures("own_interpreters")

MEMORY = {"32M": 32 << 20, "64M": 64 << 20, "256M": 256 << 20, "2G": 2 << 30}
LARGE = {("stop-and-copy", "sequential"), ("precopy", "write-heavy"), ("postcopy", "random")}
"""What is done with the larger memory, too."""
WORKLOADS = ("idle", "sequential", "random", "write-heavy")
SECONDS = 400
"""For a guest of 2 GiB, beside other tests on a slow machine."""


def ways() -> Iterator[object]:
    """Each mode and workload, and each of `LARGE`."""
    for mode, workload in itertools.product(MODES, WORKLOADS):
        memory = "32M"
        if mode == "postcopy":
            # That even an idle guest meets a page that is not there yet takes some time.
            memory = "256M" if workload in ("idle", "sequential") else "64M"
        yield pytest.param(memory, mode, workload, id=f"{memory}-{mode}-{workload}")
    for mode, workload in sorted(LARGE):
        yield pytest.param("2G", mode, workload, id=f"2G-{mode}-{workload}", marks=pytest.mark.long)


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize(("memory", "mode", "workload"), list(ways()))
def test_all_its_memory_is_right(tmp_path: Path, memory: str, mode: str, workload: str) -> None:
    ended = toolstack(
        "demo", "--mode", mode, "--memory", memory, "--workload", workload, "--json",
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}, timeout=SECONDS,
    )  # fmt: skip
    assert ended.code == 0, ended
    result = ended.json
    assert (result["outcome"], result["mode"], result["verified"]) == ("success", mode, True)
    guest = result["guest"]
    assert (guest["state"], guest["memory_ok"]) == ("running", True)
    assert guest["pages_checked"] >= MEMORY[memory] // 4096
    if mode == "postcopy":
        # Real faults are served, and it runs before the last page is there.
        assert result["postcopy"]["faults"] > 0
        assert result["first_step_lead_seconds"] > 0
    assert list(tmp_path.iterdir()) == []
