"""Many runs, several at once: each verdict is kept as soon as it is known, so that a campaign can
be resumed.

The state is a file of JSON lines: the selection, then a line for each verdict. Whatever ends a
campaign, its lines stay valid, and `resume` runs what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack.aio.scratch import sweep
from xen_save_helper.toolstack.campaign import matrix
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.matrix import Cell, GuestKind
from xen_save_helper.toolstack.campaign.run import FAULT_LIMITS, Verdict
from xen_save_helper.toolstack.campaign.run_process import RunProcess, request, verdict_by
from xen_save_helper.toolstack.campaign.shards import Shard
from xen_save_helper.toolstack.campaign.worker import PREFIX, end_all_in
from xen_save_helper.toolstack.limits import Limits

USUAL_GUEST: Final = GuestKind(4 << 20, "random")


@dataclass(frozen=True)
class Selection:
    """What a campaign runs. `random` is a number of plans of two faults, 0 for the matrix; `short`
    is the part of the matrix that touches everything. `seed` is that of the random plans."""

    modes: tuple[str, ...]
    points: str = "*"
    random: int = 0
    seed: int = 0
    short: bool = False
    guest: GuestKind = USUAL_GUEST
    limits: Limits = FAULT_LIMITS

    def cells(self) -> list[Cell]:
        """Raises ValueError if that selects nothing."""
        modes = [Mode(mode) for mode in self.modes]
        if self.random:
            return matrix.at_random(self.random, self.seed, modes, self.points)
        found = matrix.cells(modes, self.points)
        if not found:
            raise ValueError(f"no point of these modes is like {self.points!r}")
        return matrix.short(found) if self.short else found

    def request(self, cell: Cell) -> dict[str, Any]:
        """What makes a run of one of the cells (`run_process.request`)."""
        return request(cell, self.guest, self.limits, must_fire=self.must_fire)

    @property
    def must_fire(self) -> bool:
        """Whether each cell was chosen because a run passes its points: some plans by chance never
        fire."""
        return not self.random

    @property
    def title(self) -> str:
        of = "" if self.points == "*" else f" at {self.points}"
        if self.random:
            return f"{self.random:,} random plans of two faults{of}, seed {self.seed}"
        if self.short:
            return f"Each point and each action once{of}"
        return f"Every point with every action{of}"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        made = {
            "modes": tuple(fields["modes"]),
            "guest": GuestKind(*fields["guest"]),
            "limits": Limits(**fields["limits"]),
        }
        return cls(**{**fields, **made})


class StateError(Exception):
    """The file belongs to another campaign or to none; the text names it and says what to do."""


class State:
    """The file. `selection` is None before `begin`, `shard` for a whole campaign; `version` is that
    of the program that began it, `verdicts` are by the cell's text. Their traces stay in the file:
    `trace` reads one."""

    def __init__(self, path: Path, *, only_read: bool = False) -> None:
        """Read the file if there is one. A last line that is incomplete was being written when the
        campaign was killed: it is cut off, and its cell runs again; `only_read` passes over it.
        Raises StateError, OSError."""
        self._path = path
        self._only_read = only_read
        self._places: dict[tuple[str, str], int] = {}
        self.selection: Selection | None = None
        self.shard: Shard | None = None
        self.version = version()
        self.verdicts: dict[str, Verdict] = {}
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            self._read(file)

    def _read(self, file: BinaryIO) -> None:
        place = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                if not self._only_read:
                    os.truncate(self._path, place)
                break
            try:
                fields = json.loads(line)
                if number == 1:
                    self.selection = Selection.from_json(fields["campaign"])
                    self.version = str(fields["version"])
                    if "shard" in fields:
                        self.shard = Shard.parse(fields["shard"])
                else:
                    self._keep(fields.pop("cell"), Verdict.from_json(fields), place)
            except (ValueError, KeyError, TypeError, AttributeError) as bad:
                raise StateError(
                    f"{self._path}, line {number}: not written by a campaign ({bad!r}); "
                    "name another directory"
                ) from None
            place += len(line)

    def begin(self, selection: Selection, shard: Shard | None = None) -> None:
        """Raises OSError."""
        part = {} if shard is None else {"shard": str(shard)}
        self._append({"campaign": asdict(selection), "version": self.version, **part})
        self.selection, self.shard = selection, shard

    def forget(self) -> None:
        """Remove the file, and its directory if that has nothing else. Raises OSError."""
        self._path.unlink()
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()

    def add(self, cell: Cell, verdict: Verdict) -> None:
        """Raises OSError."""
        place = self._append({"cell": str(cell), **verdict.as_json()})
        self._keep(str(cell), verdict, place)

    def trace(self, verdict: Verdict) -> tuple[dict[str, Any], ...]:
        """The events of the run of a verdict in `verdicts`. Raises OSError."""
        with open(self._path, "rb") as file:
            file.seek(self._places[verdict.mode, verdict.plan])
            return tuple(json.loads(file.readline())["events"])

    def lines(self) -> Iterator[bytes]:
        """Yield the line of each verdict in `verdicts`. Raises OSError."""
        with open(self._path, "rb") as file:
            for place in sorted(self._places.values()):
                file.seek(place)
                yield file.readline()

    def _keep(self, cell: str, verdict: Verdict, place: int) -> None:
        self.verdicts[cell] = replace(verdict, events=())
        self._places[verdict.mode, verdict.plan] = place

    def _append(self, fields: Mapping[str, Any]) -> int:
        """Append a line, and return its offset."""
        line = json.dumps(fields, default=str).encode() + b"\n"
        with open(self._path, "ab", buffering=0) as file:
            place = file.tell()
            file.write(line)
        return place


Heard = Callable[[Cell, Verdict], None]


async def run_cells(
    cells: Sequence[Cell], selection: Selection, jobs: int, heard: Heard, stop: asyncio.Event
) -> None:
    """Run `cells`, `jobs` at once, and tell `heard` each verdict. Once `stop` is set, what runs
    ends and nothing new begins. A cancellation ends what runs. Raises OSError, and what `heard`
    raises."""
    waiting = iter(cells)
    workers = [_work(waiting, selection, heard, stop) for _ in range(min(jobs, len(cells)))]
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        # Remove what a process that had to be killed has left.
        await asyncio.to_thread(sweep, PREFIX, None, end_all_in)


async def _work(
    waiting: Iterator[Cell], selection: Selection, heard: Heard, stop: asyncio.Event
) -> None:
    process = RunProcess()
    try:
        while not stop.is_set() and (cell := next(waiting, None)) is not None:
            heard(cell, await verdict_by(process, selection.request(cell)))
    finally:
        await process.end()


@contextlib.contextmanager
def stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    """Let SIGINT set `stop`, and a second SIGINT or a SIGTERM cancel the task."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def interrupted() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
