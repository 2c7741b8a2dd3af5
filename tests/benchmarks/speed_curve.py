"""How fast a guest runs while its pages come: its steps are counted from outside."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.commands.demo import GUEST, MODES, postcopy_complete_at, two_hosts
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.xl.migrate import migrate
from xen_save_helper.toolstack.xl.migrate_options import HostDestination, MigrateOptions
from xen_save_helper.toolstack.xl.outcome import Outcome

TENTHS: Final = 10
BANDWIDTH: Final = 200_000_000
"""Bytes a second of background pages, as while faults are timed."""

_SAMPLE_SECONDS: Final = 0.002
_SETTLE_SECONDS: Final = 0.3
"""After the last page, until the migration's processes have ended."""
_AT_THE_END_SECONDS: Final = 1.0
"""How long the guest's speed is measured once its last page is in."""

Sample = tuple[float, int]
"""CLOCK_MONOTONIC time, and the steps that the guest has made."""


@dataclass(frozen=True)
class Speeds:
    """Of one migration, in steps a second: in each tenth of the time from the guest's first step at
    the destination to its last page, and once that is in."""

    tenths: Sequence[float]
    at_the_end: float
    seconds: float
    """From the first step to the last page."""


@dataclass(frozen=True)
class Curve:
    what: str
    runs: list[Speeds]

    def shares(self, tenth: int) -> list[float]:
        """Of its speed at the end that the guest had in this tenth, in each run, in order."""
        return sorted(run.tenths[tenth] / run.at_the_end for run in self.runs)


class _Watch:
    """Samples the steps of the guest of a host, in a thread of its own."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self.samples: list[Sample] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._enough.wait(_SAMPLE_SECONDS):
            if rows := self._host.domains():
                break
        else:
            return
        with self._host.domain(rows[0].domid) as domain:
            page = domain.shared.domain
            while not self._enough.wait(_SAMPLE_SECONDS):
                self.samples.append((time.monotonic(), page.steps))
            del page


@contextmanager
def _without_prefetch() -> Iterator[None]:
    """The processes that are started meanwhile do not prefetch around faults."""
    before = os.environ.get("PYTHONPATH")
    directory = str(Path(__file__).with_name("without_prefetch"))
    os.environ["PYTHONPATH"] = directory if before is None else f"{directory}:{before}"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def speeds(memory: int, *, prefetch: bool) -> Speeds:
    """Migrate a guest that writes its hot set at random by postcopy. Raises RuntimeError if that
    fails."""
    if prefetch:
        return asyncio.run(_speeds(memory))
    with _without_prefetch():
        return asyncio.run(_speeds(memory))


async def _speeds(memory: int) -> Speeds:
    with two_hosts() as (source, destination), tempfile.TemporaryDirectory() as scratch:
        host, there = SimulatedHost(source), SimulatedHost(destination)
        events = Path(scratch, "events")
        domid = host.create_guest(GUEST, memory, "random")
        watch = _Watch(there)
        watch.start()
        try:
            result = await migrate(
                Context(host, f"sim:{source}", trace=Trace("controller")),
                domid,
                HostDestination(destination, there, [f"--events={events}"]),
                MigrateOptions(*MODES["postcopy"], BANDWIDTH),
            )
            if result.outcome is not Outcome.SUCCESS:
                raise RuntimeError(f"the migration failed: {result.reason}")
            await asyncio.sleep(_SETTLE_SECONDS + _AT_THE_END_SECONDS)
        finally:
            watch.stop()
        first = there.report(there.find(GUEST)).first_step_at
        last = postcopy_complete_at(events, 0)
    if first is None or last is None:
        raise RuntimeError("the guest took no step, or its last page never came")
    bounds = [first + (last - first) * tenth / TENTHS for tenth in range(TENTHS + 1)]
    # Before its first step, the guest may not have loaded how many it had made at the source.
    samples = watch.samples[bisect_left(watch.samples, (first, 0)) :]
    tenths = [_speed(samples, *ends) for ends in pairwise(bounds)]
    settled = last + _SETTLE_SECONDS
    at_the_end = _speed(samples, settled, settled + _AT_THE_END_SECONDS)
    return Speeds(tenths, at_the_end, last - first)


def _speed(samples: Sequence[Sample], begin: float, end: float) -> float:
    """Steps a second between two times."""
    return (_steps_at(samples, end) - _steps_at(samples, begin)) / (end - begin)


def _steps_at(samples: Sequence[Sample], when: float) -> float:
    """Steps until then; between two samples, as if at an even pace."""
    after = bisect_left(samples, (when, 0))
    if after in (0, len(samples)):
        return float(samples[min(after, len(samples) - 1)][1])
    (before_at, before), (after_at, steps) = samples[after - 1 : after + 1]
    return before + (steps - before) * (when - before_at) / (after_at - before_at)


def show_curves(curves: Sequence[Curve]) -> None:
    """Print each tenth's share of the speed at the end: the median of all runs, and the least and
    the greatest."""
    table = Table("share of the time", *(curve.what for curve in curves))
    for tenth in range(TENTHS):
        cells = []
        for curve in curves:
            shares = curve.shares(tenth)
            cells.append(f"{statistics.median(shares):.2f}  {shares[0]:.2f}…{shares[-1]:.2f}")
        table.add_row(f"{10 * tenth} to {10 * tenth + 10} %", *cells)
    took = (f"{statistics.median(run.seconds for run in curve.runs):.2f} s" for curve in curves)
    table.add_row("from first step to last page", *took)
    Console(width=None if sys.stdout.isatty() else 165).print(table)
