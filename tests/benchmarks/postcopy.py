"""Postcopy on the simulated hypervisor: how long the guest is stopped, how long its faults take,
when all pages are in, and how fast the guest runs meanwhile.

Each figure is beside its peer of the same run: a migration by stop-and-copy, a ping-pong, or the
same guest once its last page is in.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

from tests.benchmarks import limits, migrations
from tests.benchmarks.line import Line, Pair
from tests.benchmarks.speed_curve import Curve, speeds

DRAINED: Final = "200M"
"""Bytes a second of background pages while faults are timed: far below what the link can do, so
that it is empty when a fault comes."""

MICRO: Final = 1e6
MILLI: Final = 1e3

CURVE_MEMORY: Final = 256 << 20

FAULT_REACH: Final = {50: 2.5, 99: 8}
BUSY_REACH: Final = {50: 6, 99: 25}
SPEED_REACH: Final = 0.5


@contextmanager
def busy(processor: int) -> Iterator[None]:
    """A process that computes all the time on this processor, as others of a dom0 do."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {processor})
        while os.getppid() == parent:
            sum(range(10_000))
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def faults(memory: str, runs: int) -> Iterator[Line]:
    """Compare the p50 and p99 of each migration's faults with a ping-pong that has both processors
    to itself."""
    quiet: dict[int, list[Pair]] = {percent: [] for percent in FAULT_REACH}
    beside: dict[int, list[Pair]] = {percent: [] for percent in BUSY_REACH}
    for _ in range(runs):
        for pairs, meanwhile in ((quiet, nullcontext()), (beside, busy(limits.FAR))):
            ping = limits.percentile(limits.socket_ping_pong(4000), 50) * MICRO
            with meanwhile:
                result = migrations.demo("postcopy", memory, "random", "--bandwidth", DRAINED)
            for percent, of_percent in pairs.items():
                of_percent.append((result["postcopy"][f"fault_p{percent}_us"], ping))
    for pairs, reach, where in (
        (quiet, FAULT_REACH, ""),
        (beside, BUSY_REACH, ", one processor of two busy"),
    ):
        for percent, of_percent in pairs.items():
            yield Line(
                f"postcopy fault, p{percent}{where}", "µs",
                of_percent, "ping-pong over a socket, p50", reach[percent],
            )  # fmt: skip


def _until_all_in(result: migrations.Result) -> float:
    """Seconds from the guest's suspension until its last page was in place."""
    downtime: float = result["downtime_seconds"]
    return downtime + (result["first_step_lead_seconds"] or 0.0)


def beside_stop_and_copy(memory: str, large: str, runs: int) -> Iterator[Line]:
    """Compare migrations of the same guest by postcopy and by stop-and-copy."""
    downtime: list[Pair] = []
    all_in: dict[str, list[Pair]] = {"random": [], "write-heavy": []}
    for _ in range(runs):
        for workload, size in (("random", memory), ("write-heavy", large)):
            there, whole = (
                migrations.demo(mode, size, workload) for mode in ("postcopy", "stop-and-copy")
            )
            all_in[workload].append((_until_all_in(there), _until_all_in(whole)))
        downtime.append((there["downtime_seconds"] * MILLI, whole["downtime_seconds"] * MILLI))
    yield Line(
        f"downtime, postcopy, {large}, write-heavy", "ms",
        downtime, "stop-and-copy", 1 / 20,
    )  # fmt: skip
    yield Line(
        f"until all pages are in, {memory}, random", "s",
        all_in["random"], "stop-and-copy", 1.3,
    )  # fmt: skip
    yield Line(
        f"the same, {large}, write-heavy", "s",
        all_in["write-heavy"], "stop-and-copy", None,
    )  # fmt: skip


def curves(memory: int, runs: int) -> list[Curve]:
    """How fast a guest runs while its pages come, with prefetch around faults and without."""
    found = [Curve("prefetch around faults", []), Curve("no prefetch", [])]
    for _ in range(runs):
        for curve, prefetch in zip(found, (True, False), strict=True):
            curve.runs.append(speeds(memory, prefetch=prefetch))
    return found


def slowest_after_the_first_tenth(curve: Curve, reach: float | None) -> Line:
    """A row of a curve: the slowest tenth after the first."""
    pairs = [(min(run.tenths[1:]), run.at_the_end) for run in curve.runs]
    return Line(
        f"guest's slowest tenth after the first, {curve.what}", "steps/s",
        pairs, "with the last page in", reach, at_least=True,
    )  # fmt: skip


def postcopy(*, quick: bool) -> tuple[list[Line], list[Curve]]:
    """All rows and curves."""
    runs = 1 if quick else 5
    lines = [*faults("256M", runs)]
    memory, large = ("128M", "128M") if quick else ("512M", "2G")
    lines += beside_stop_and_copy(memory, large, -(-runs // 2))
    found = curves(CURVE_MEMORY, -(-runs // 2))
    reach = SPEED_REACH, None  # what no prefetch costs is for information
    lines += map(slowest_after_the_first_tenth, found, reach)
    return lines, found
