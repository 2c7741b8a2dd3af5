"""Measure everything that the project promises about its speed, and print it.

    python -m tests.benchmarks [--json] [--quick] [beside-c | simulated | postcopy | evacuations]

`beside-c` has C's save helper, Debian's own, on the stand-in for the hypervisor, as the limit of
ours; `simulated`, the simulated hypervisor, plain loops; `postcopy` compares a postcopy with a
stop-and-copy, a ping-pong, and the same guest afterwards; `evacuations` compares those of many
guests with those of few. Without a name all are measured.

Each figure is measured alternately with its limit, several times, so that a drift of the machine
affects both. The median of the ratios is compared with the ratio to reach; the least and the
greatest are shown beside it. The exit code is 0 if all were reached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import callbacks, limits, throughput
from tests.benchmarks.beside_c_lines import beside_c
from tests.benchmarks.evacuations import evacuations
from tests.benchmarks.line import Line, Pair, show
from tests.benchmarks.paging import paging
from tests.benchmarks.postcopy import postcopy
from tests.benchmarks.speed_curve import Curve, show_curves
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

GIB = 1 << 30
SMALL = 4 << 20
"""Bytes of a guest whose save is little more than its helper's start."""
MICRO = 1e6
MILLI = 1e3


def throughputs(memory: int, runs: int) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        create_host(Path(directory, "host"))
        host = SimulatedHost(Path(directory, "host"))
        stream = Path(directory, "stream")
        domid = host.create_guest("benchmark", memory, "idle", type="pvh")
        gibs = memory / GIB
        try:
            yield Line(
                "save into a drained socket", "GiB/s",
                [
                    (throughput.save(host, domid).rate / GIB, gibs / limits.write_loop(memory))
                    for _ in range(runs)
                ],
                "a loop of write", 0.8, at_least=True,
            )  # fmt: skip
            throughput.save_to_file(host, domid, stream)
            restores = [
                (
                    throughput.restore(host, domid, stream).rate / GIB,
                    gibs / limits.recv_loop(memory, memory),
                    gibs / limits.recv_loop(memory, limits.CHUNK),
                )
                for _ in range(runs)
            ]
            yield Line(
                "restore from a socket", "GiB/s",
                [(restore, fresh) for restore, fresh, _ in restores],
                "a loop of recv_into fresh memory", 0.7, at_least=True,
            )  # fmt: skip
            yield Line(
                "the same", "GiB/s",
                [(restore, used) for restore, _, used in restores],
                "a loop of recv_into one buffer, again and again", None,
            )  # fmt: skip
            watched = (
                throughput.save(host, domid, watch=True),
                throughput.save(host, domid, live=True, watch=True),
                throughput.restore(host, domid, stream, watch=True),
            )
            memory_beyond = max(run.helper_memory for run in watched) - throughput.idle_memory()
            yield Line(
                "helper's memory beyond an idle Python, live saves too", "bytes",
                [(memory_beyond, memory / 4096)], "guest pages", 16,
            )  # fmt: skip
        finally:
            host.destroy(domid)


def watched(memory: int, runs: int) -> Iterator[Line]:
    """Saves that another process looks at ten times a second, beside saves that nobody can see."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        create_host(Path(directory, "host"))
        host = SimulatedHost(Path(directory, "host"))
        domid = host.create_guest("benchmark", memory, "idle", type="pvh")
        try:
            pairs = []
            for _ in range(runs):
                unseen = throughput.save(host, domid).rate / GIB
                with throughput.watcher(host):
                    pairs.append((throughput.save(host, domid, seen=True).rate / GIB, unseen))
            yield Line(
                "save that is watched ten times a second", "GiB/s",
                pairs, "a save that nobody can see", 0.98, at_least=True,
            )  # fmt: skip
        finally:
            host.destroy(domid)


def round_trips(runs: int) -> Iterator[Line]:
    """Compare the p50 of each run's callbacks."""
    pairs: dict[str, list[Pair]] = {"sync": [], "async": []}
    for _ in range(runs):
        ping = limits.percentile(limits.pipe_ping_pong(1000), 50) * MICRO
        for kind, times in callbacks.round_trips().items():
            pairs[kind].append((limits.percentile(times, 50) * MICRO, ping))
    for kind, reach in (("sync", 3.5), ("async", 5)):
        yield Line(
            f"{kind} callback over ZeroMQ, p50", "µs",
            pairs[kind], "ping-pong over a pipe, p50", reach,
        )  # fmt: skip


def starts(runs: int) -> Iterator[Line]:
    yield Line(
        "helper ready after its start", "ms",
        [(callbacks.helper_start() * MILLI, limits.python_start() * MILLI) for _ in range(runs)],
        "python -c pass", 6,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        create_host(Path(directory, "host"))
        host = SimulatedHost(Path(directory, "host"))
        domid = host.create_guest("benchmark", SMALL, "idle", type="pvh")
        try:
            yield Line(
                "helper from its start to its exit, save of 4 MiB", "ms",
                [
                    (throughput.helper_run(host, domid) * MILLI, limits.python_start() * MILLI)
                    for _ in range(runs)
                ],
                "python -c pass", 12,
            )  # fmt: skip
        finally:
            host.destroy(domid)


def simulated(memory: int, runs: int) -> Iterator[Line]:
    yield from throughputs(memory, runs)
    yield from watched(memory, runs)
    yield from round_trips(runs)
    yield from starts(runs)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--quick", action="store_true", help="small guests, one run of each")
    groups = ("all", "beside-c", "simulated", "postcopy", "evacuations")
    parser.add_argument("group", nargs="?", choices=groups, default="all")
    arguments = parser.parse_args()
    memory, runs = (GIB, 11) if not arguments.quick else (GIB // 8, 1)
    stolen, started = limits.stolen_seconds(), time.monotonic()
    lines: list[Line] = []
    if arguments.group in {"all", "beside-c"}:
        lines += beside_c(memory, -(-runs // 2))
        lines += paging(runs)
    if arguments.group in {"all", "simulated"}:
        lines += simulated(memory, runs)
    curves: list[Curve] = []
    if arguments.group in {"all", "postcopy"}:
        more, curves = postcopy(quick=arguments.quick)
        lines += more
    if arguments.group in {"all", "evacuations"}:
        lines += evacuations(-(-runs // 4))
    stolen = (limits.stolen_seconds() - stolen) / (time.monotonic() - started)
    if arguments.json:
        rows = [asdict(line) | {"ratio": line.ratio} for line in lines]
        print(json.dumps(rows + [asdict(curve) for curve in curves]))
    else:
        show(lines)
        if curves:
            show_curves(curves)
        print(f"The hypervisor below took {1000 * stolen:.1f} ms of processor time a second.")
        print(f"The load is {os.getloadavg()[0]:.1f} for the last minute.")
    return 0 if all(line.reached for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
