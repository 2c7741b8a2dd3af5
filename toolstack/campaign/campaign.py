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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack.aio.scratch import sweep
from xen_save_helper.toolstack.campaign import matrix
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.matrix import Cell, GuestKind, guest_for
from xen_save_helper.toolstack.campaign.run import FAULT_LIMITS, Verdict
from xen_save_helper.toolstack.campaign.worker import PREFIX, end_all_in, unjudged
from xen_save_helper.toolstack.limits import Limits

USUAL_GUEST: Final = GuestKind(4 << 20, "random")

RUN_LIMIT: Final = 300.0
"""Seconds for one run, several times what the slowest take: each of its waits has a limit."""

_TRIES: Final = 3

_END_LIMIT: Final = 30.0
"""Seconds for a process that has nothing left to do to end."""

_LONGEST_LINE: Final = 64 << 20
"""Bytes of a verdict with its trace."""


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
    """The file. `selection` is None before `begin`, `version` is that of the program that began it,
    `verdicts` are by the cell's text. Their traces stay in the file: `trace` reads one."""

    def __init__(self, path: Path) -> None:
        """Read the file if there is one. A last line that is incomplete was being written when the
        campaign was killed: it is cut off, and its cell runs again. Raises StateError, OSError."""
        self._path = path
        self._places: dict[tuple[str, str], int] = {}
        self.selection: Selection | None = None
        self.version = version()
        self.verdicts: dict[str, Verdict] = {}
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            self._read(file)

    def _read(self, file: BinaryIO) -> None:
        place = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                os.truncate(self._path, place)
                break
            try:
                fields = json.loads(line)
                if number == 1:
                    self.selection = Selection.from_json(fields["campaign"])
                    self.version = str(fields["version"])
                else:
                    self._keep(fields.pop("cell"), Verdict.from_json(fields), place)
            except (ValueError, KeyError, TypeError, AttributeError) as bad:
                raise StateError(
                    f"{self._path}, line {number}: not written by a campaign ({bad!r}); "
                    "name another directory"
                ) from None
            place += len(line)

    def begin(self, selection: Selection) -> None:
        """Raises OSError."""
        self._append({"campaign": asdict(selection), "version": self.version})
        self.selection = selection

    def add(self, cell: Cell, verdict: Verdict) -> None:
        """Raises OSError."""
        place = self._append({"cell": str(cell), **verdict.as_json()})
        self._keep(str(cell), verdict, place)

    def trace(self, verdict: Verdict) -> tuple[dict[str, Any], ...]:
        """The events of the run of a verdict in `verdicts`. Raises OSError."""
        with open(self._path, "rb") as file:
            file.seek(self._places[verdict.mode, verdict.plan])
            return tuple(json.loads(file.readline())["events"])

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
    ends and nothing new begins. A cancellation kills what runs. Raises OSError, and what `heard`
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
    worker = _Worker(selection)
    try:
        while not stop.is_set() and (cell := next(waiting, None)) is not None:
            heard(cell, await _verdict(worker, cell, must_fire=not selection.random))
    finally:
        await worker.end()


async def _verdict(worker: _Worker, cell: Cell, *, must_fire: bool) -> Verdict:
    """`must_fire`: a run of the matrix shows nothing if the fault that it aims at does not fire.
    Such a run is repeated: it is up to the guest whether it touches a page in time."""
    for _ in range(_TRIES):
        verdict = await worker.run(cell)
        if verdict.problems or not must_fire or str(cell.aim) in verdict.fired:
            return verdict
    return replace(verdict, holds=False)


class _Worker:
    """A process that makes runs, one after another; it is replaced if it had to be killed."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, cell: Cell) -> Verdict:
        """Raises OSError if the process cannot start."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "xen_save_helper.toolstack.campaign.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
        mode, plan = cell.mode.value, str(cell.seeded)
        guest = guest_for(cell.plan, self._selection.guest)
        asked = {
            "mode": mode,
            "plan": plan,
            **guest._asdict(),
            "limits": asdict(self._selection.limits),
        }
        try:
            async with asyncio.timeout(RUN_LIMIT):
                return Verdict.from_json(await self._ask(asked))
        except TimeoutError:
            problem = f"the run had not ended after {RUN_LIMIT:.0f} s"
        except (ConnectionError, ValueError) as bad:
            problem = f"the process that made the run has failed: {bad}"
        except asyncio.CancelledError:
            await self._kill()
            raise
        await self._kill()
        return unjudged(mode, plan, problem)

    async def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Raises ConnectionError without an answer, ValueError for an answer that is not JSON."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError(f"it ended with exit status {await process.wait()}")
        fields: dict[str, Any] = json.loads(line)
        return fields

    async def end(self) -> None:
        """End the process in order once it has nothing to do."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_LIMIT):
                await self._process.wait()
        except TimeoutError:
            await self._kill()
        self._process = None

    async def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._process = None


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
