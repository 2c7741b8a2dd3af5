"""Measure everything that the project promises of its speed, and print it.

    python -m tests.benchmarks [--json] [--quick]

Each figure stands beside a limit that was measured in the same run, and their ratio beside the
ratio to reach. The exit code is 0 if all were reached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from helper.hypervisors.simulated.host import SimulatedHost, create_host
from tests.benchmarks import callbacks, limits, migrations, throughput

FAULT_BANDWIDTH = "200M"
"""Octets a second of background pages while faults are timed: far below what the link can do, so
that it is drained when a fault comes."""


@dataclass(frozen=True)
class Line:
    """A row: the figure and its limit in `unit`, and the ratio that is to be reached."""

    what: str
    unit: str
    figure: float
    limit_is: str
    limit: float
    reach: float
    at_least: bool = False

    @property
    def ratio(self) -> float:
        return self.figure / self.limit

    @property
    def reached(self) -> bool:
        return self.ratio >= self.reach if self.at_least else self.ratio <= self.reach


GIB = 1 << 30
MICRO = 1e6
MILLI = 1e3


def throughputs(memory: int, runs: int) -> Iterator[Line]:
    """Save and restore, in turn with their limits, so that a drift of the machine meets both."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        create_host(Path(directory, "host"))
        host = SimulatedHost(Path(directory, "host"))
        stream = Path(directory, "stream")
        domid = host.create_guest("benchmark", memory, "idle", type="pvh")
        try:
            pairs = [
                (throughput.save(host, domid), memory / limits.write_loop(memory))
                for _ in range(runs)
            ]
            saves, writes = zip(*pairs, strict=True)
            yield Line(
                "save into a drained socket", "GiB/s",
                statistics.median(save.rate for save in saves) / GIB,
                "a loop of write", statistics.median(writes) / GIB, 0.8, at_least=True,
            )  # fmt: skip
            throughput.save_to_file(host, domid, stream)
            pairs = [
                (throughput.restore(host, domid, stream), memory / limits.recv_loop(memory))
                for _ in range(runs)
            ]
            restores, receipts = zip(*pairs, strict=True)
            yield Line(
                "restore from a socket", "GiB/s",
                statistics.median(restore.rate for restore in restores) / GIB,
                "a loop of recv_into fresh memory", statistics.median(receipts) / GIB, 0.7,
                at_least=True,
            )  # fmt: skip
            watched = (
                throughput.save(host, domid, watch=True),
                throughput.save(host, domid, live=True, watch=True),
                throughput.restore(host, domid, stream, watch=True),
            )
            memory_beyond = max(run.helper_memory for run in watched) - throughput.idle_memory()
            yield Line(
                "helper's memory beyond an idle Python, live saves too", "octets",
                memory_beyond, "guest pages", memory / 4096, 16,
            )  # fmt: skip
        finally:
            host.destroy(domid)


def round_trips(runs: int) -> Iterator[Line]:
    """Callbacks in turn with their limit; the medians of the runs' p50."""
    pings, syncs, asyncs = [], [], []
    for _ in range(runs):
        pings.append(limits.percentile(limits.pipe_ping_pong(1000), 50))
        times = callbacks.round_trips()
        syncs.append(limits.percentile(times["sync"], 50))
        asyncs.append(limits.percentile(times["async"], 50))
    for kind, times_of_kind, reach in (("sync", syncs, 3.5), ("async", asyncs, 5)):
        yield Line(
            f"{kind} callback over ZeroMQ, p50", "µs",
            statistics.median(times_of_kind) * MICRO,
            "ping-pong over a pipe, p50", statistics.median(pings) * MICRO, reach,
        )  # fmt: skip


def starts(runs: int) -> Iterator[Line]:
    yield Line(
        "helper ready after its start", "ms",
        statistics.median(callbacks.helper_start(runs)) * MILLI,
        "python -c pass", statistics.median(limits.python_start(runs)) * MILLI, 6,
    )  # fmt: skip


def faults(memory: str, runs: int) -> Iterator[Line]:
    """Migrations in turn with their limit; the medians of the runs' p50 and p99."""
    pings, results = [], []
    for _ in range(runs):
        pings.append(limits.percentile(limits.socket_ping_pong(4000), 50))
        result = migrations.demo("postcopy", memory, "random", "--bandwidth", FAULT_BANDWIDTH)
        results.append(result["postcopy"])
    for percent, reach in ((50, 6), (99, 20)):
        yield Line(
            f"postcopy fault, p{percent}", "µs",
            statistics.median(result[f"fault_p{percent}_us"] for result in results),
            "ping-pong over a socket, p50", statistics.median(pings) * MICRO, reach,
        )  # fmt: skip


def downtime(memory: str) -> Iterator[Line]:
    seconds = {
        mode: migrations.demo(mode, memory, "write-heavy")["downtime_seconds"]
        for mode in ("stop-and-copy", "postcopy")
    }
    yield Line(
        f"downtime, postcopy, {memory}, write-heavy", "ms", seconds["postcopy"] * MILLI,
        "stop-and-copy", seconds["stop-and-copy"] * MILLI, 0.1,
    )  # fmt: skip


def show(lines: list[Line]) -> None:
    table = Table("what", "figure", "limit", "", "ratio", "to reach", "")
    for line in lines:
        table.add_row(
            line.what,
            f"{line.figure:,.2f} {line.unit}",
            f"{line.limit:,.2f}",
            line.limit_is,
            f"{line.ratio:.2f}",
            f"{'≥' if line.at_least else '≤'} {line.reach:g}",
            "yes" if line.reached else "NO",
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--quick", action="store_true", help="small guests, one run of each")
    arguments = parser.parse_args()
    memory, runs, large = (GIB, 5, "2G") if not arguments.quick else (GIB // 8, 1, "128M")
    stolen, started = limits.stolen_seconds(), time.monotonic()
    lines = [
        *throughputs(memory, runs),
        *round_trips(9 if not arguments.quick else 1),
        *starts(10),
        *faults("256M", runs),
        *downtime(large),
    ]
    stolen = (limits.stolen_seconds() - stolen) / (time.monotonic() - started)
    if arguments.json:
        print(json.dumps([asdict(line) | {"ratio": line.ratio} for line in lines]))
    else:
        show(lines)
        print(f"The machine below took {1000 * stolen:.1f} ms of processor time in each second.")
    return 0 if all(line.reached for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
