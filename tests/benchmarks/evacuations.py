"""Evacuations of 1, 8 and 64 guests: the time for each guest, and what the controller takes.

    python -m tests.benchmarks.evacuations GUESTS [JOBS [RATE]]

evacuates a host of so many guests of 16 MiB, which write RATE pages a second each, in a process of
its own, and prints what it took.

All guests run on this machine throughout: 64 of them take processor time that a host which is
evacuated does not miss at its destination's controller. So theirs is measured as well, and that of
guests which write next to nothing is what is compared.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.line import Line, Pair
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack.aio.scratch import ScratchDirectory
from xen_save_helper.toolstack.commands.demo import destroy_all
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.evacuation.outcome import Fate
from xen_save_helper.toolstack.evacuation.plan import make_plan
from xen_save_helper.toolstack.evacuation.run import EvacuationOptions, evacuate
from xen_save_helper.toolstack.evacuation.survey import look_at_destination, look_at_guests
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.xl.migrate_options import HostDestination

MEMORY: Final = 16 << 20
NUMBERS: Final = (1, 8, 64)
JOBS: Final = 4
QUIET: Final = 1.0
BUSY: Final = 40.0
"""Pages a second that each guest writes. It wakes up as often, and compares some pages each time:
64 of the busy ones take a processor or more."""
_PR_SET_CHILD_SUBREAPER: Final = 36


def one(number: int, jobs: int, rate: float) -> dict[str, float]:
    """Evacuate a host of `number` guests. Returns, for each guest, the seconds, and the processor
    seconds of this process, of its receivers and helpers, and of the guests themselves; and the
    most memory that this process had, in bytes. Raises RuntimeError if a guest did not move."""
    _become_reaper()
    # As in a demo: a later one removes what a killed one left.
    with ScratchDirectory("evacuation-", Path("/dev/shm"), clear=destroy_all) as scratch:
        for name in ("here", "there"):
            create_host(scratch.path / name)
        here, there = (SimulatedHost(scratch.path / name) for name in ("here", "there"))
        try:
            for index in range(number):
                here.create_guest(f"guest-{index}", MEMORY, "random", rate, type="pvh")
            guests_before = _spent_by_guests(here)
            before, began = _spent(), time.monotonic()
            ctx = Context(here, f"sim:{here.directory}")
            destination = HostDestination(there.directory, there)
            guests = look_at_guests(here, here.domains())
            place = look_at_destination(destination, here, guests, postcopy=False)
            plan = make_plan(guests, [place])
            options = EvacuationOptions(jobs=jobs)
            result = asyncio.run(evacuate(ctx, plan, {place.name: destination}, options))
            seconds, after = time.monotonic() - began, _spent()
            of_guests = _spent_by_guests(there) + _reaped() - guests_before
            if failed := [end for end in result.guests if end.fate is not Fate.MOVED]:
                raise RuntimeError(f"{len(failed)} guests did not move: {failed[0]}")
        finally:
            destroy_all(scratch.path)
            _reaped()
    own, others = (now - then for now, then in zip(after, before, strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    spent = {"seconds": seconds, "own": own, "others": others, "guests": of_guests}
    return {**{what: took / number for what, took in spent.items()}, "memory": memory}


def _spent() -> tuple[float, float]:
    """The processor seconds of this process, and of its children that have ended."""
    own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def _become_reaper() -> None:
    """Have guests, which no command waits for, become children of this process when they end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def _spent_by_guests(host: SimulatedHost) -> float:
    """The processor seconds of the guests that run there."""
    pids = (row.pid for row in host.domains())
    # clock_getcpuclockid(3) of the process.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids if pid is not None)


def _reaped() -> float:
    """The processor seconds of the guests that have ended, each counted once."""
    total = 0.0
    with suppress(ChildProcessError):
        while (ended := os.wait4(-1, os.WNOHANG))[0]:
            total += ended[2].ru_utime + ended[2].ru_stime
    return total


def measured(number: int, rate: float) -> dict[str, Any]:
    """`one` in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, str(number), str(JOBS), str(rate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def evacuations(runs: int) -> Iterator[Line]:
    """Compare 64 guests with 8 (1 guest has both processors to itself), and their memory with 1.
    What busy guests themselves take has no limit."""
    yield from _lines(QUIET, runs, "of quiet guests", targets=True)
    yield from _lines(BUSY, 1, "of busy guests", targets=False)


def _lines(rate: float, runs: int, which: str, *, targets: bool) -> Iterator[Line]:
    names = {
        "seconds": (f"evacuation of 64 {which}, each", 1.5),
        "own": ("its controller's processor time, each", 1.5),
        "others": ("its receivers' and helpers', each", 1.25),
        "guests": ("the guests' own, each", None),
    }
    alone: list[Pair] = []
    memory: list[Pair] = []
    pairs: dict[str, list[Pair]] = {what: [] for what in names}
    for _ in range(runs):
        first, some, many = (measured(number, rate) for number in NUMBERS)
        alone.append((some["seconds"] * 1e3, first["seconds"] * 1e3))
        memory.append((many["memory"] / 2**20, first["memory"] / 2**20))
        for what, found in pairs.items():
            found.append((many[what] * 1e3, some[what] * 1e3))
    yield Line(f"evacuation of 8 {which}, each", "ms", alone, "of 1", None)
    for what, (name, reach) in names.items():
        yield Line(name, "ms", pairs[what], "of 8", reach if targets else None)
    yield Line("its controller's memory", "MiB", memory, "of 1", 1.2)


if __name__ == "__main__":
    guests, jobs, rate, *_ = (*map(float, sys.argv[1:]), *(JOBS, QUIET)[len(sys.argv) - 2 :])
    print(json.dumps(one(int(guests), int(jobs), rate)))
