"""Evacuations of 1, 8 and 64 guests: the time for each guest, and what the controller takes.

    python -m tests.benchmarks.evacuations GUESTS [JOBS]

evacuates a host of so many guests of 16 MiB in a process of its own, and prints what it took.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
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
CALM: Final = 40
"""Pages a second that each guest writes: 64 of them shall not be what is measured."""


def one(number: int, jobs: int) -> dict[str, float]:
    """Evacuate a host of `number` guests. Returns, for each guest, the seconds, this process's
    processor seconds and those of its receivers and helpers; and the most memory that this process
    had, in bytes. Raises RuntimeError if a guest did not move."""
    # As in a demo: a later one removes what a killed one left.
    with ScratchDirectory("evacuation-", Path("/dev/shm"), clear=destroy_all) as scratch:
        for name in ("here", "there"):
            create_host(scratch.path / name)
        here, there = (SimulatedHost(scratch.path / name) for name in ("here", "there"))
        try:
            for index in range(number):
                here.create_guest(f"guest-{index}", MEMORY, "random", CALM, type="pvh")
            before, began = _spent(), time.monotonic()
            ctx = Context(here, f"sim:{here.directory}")
            destination = HostDestination(there.directory, there)
            guests = look_at_guests(here, here.domains())
            place = look_at_destination(destination, here, guests, postcopy=False)
            plan = make_plan(guests, [place])
            options = EvacuationOptions(jobs=jobs)
            result = asyncio.run(evacuate(ctx, plan, {place.name: destination}, options))
            seconds, after = time.monotonic() - began, _spent()
            if failed := [end for end in result.guests if end.fate is not Fate.MOVED]:
                raise RuntimeError(f"{len(failed)} guests did not move: {failed[0]}")
        finally:
            destroy_all(scratch.path)
    own, others = (now - then for now, then in zip(after, before, strict=True))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    each = {"seconds": seconds / number, "own": own / number, "others": others / number}
    return {**each, "memory": memory}


def _spent() -> tuple[float, float]:
    """The processor seconds of this process, and of its children that have ended."""
    own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def measured(number: int, jobs: int = 4) -> dict[str, Any]:
    """`one` in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, str(number), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def evacuations(runs: int) -> Iterator[Line]:
    """Compare 64 guests with 8 (1 guest has both processors to itself), and their memory with 1."""
    pairs: dict[str, list[Pair]] = {"seconds": [], "own": [], "others": [], "memory": []}
    for _ in range(runs):
        alone, some, many = (measured(number) for number in NUMBERS)
        for what in ("seconds", "own", "others"):
            pairs[what].append((many[what] * 1e3, some[what] * 1e3))
        pairs["memory"].append((many["memory"] / 2**20, alone["memory"] / 2**20))
    yield Line("evacuation of 64, each guest", "ms", pairs["seconds"], "of 8", 1.5)
    yield Line("its controller's processor time, each", "ms", pairs["own"], "of 8", 1.5)
    yield Line("its receivers' and helpers', each", "ms", pairs["others"], "of 8", 1.25)
    yield Line("its controller's memory", "MiB", pairs["memory"], "of 1", 1.2)


if __name__ == "__main__":
    print(json.dumps(one(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 4)))
