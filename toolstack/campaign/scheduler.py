"""A campaign on a Dask cluster: each cell is a task, which any worker of the cluster carries out.

The campaign hands out as many cells as the workers have threads, and only to workers that have been
seen to have this version. If a worker dies, Dask gives its tasks to others of those that the task
was meant for; if none is left, or Dask gives up, the campaign hands the cell out again.

A task's run is made by a process of its own (`worker`), which ends once nobody waits for it: the
Dask worker is dead, or the task was cancelled, as the scheduler does when the campaign is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from xen_save_helper.ipc_schema.version import DISTRIBUTION, version
from xen_save_helper.toolstack.aio.scratch import sweep
from xen_save_helper.toolstack.campaign.campaign import Heard, Selection
from xen_save_helper.toolstack.campaign.matrix import Cell
from xen_save_helper.toolstack.campaign.play import need_room
from xen_save_helper.toolstack.campaign.run import Verdict
from xen_save_helper.toolstack.campaign.run_process import RunProcess, verdict_by
from xen_save_helper.toolstack.campaign.worker import (
    PREFIX,
    end_all_in,
    longest_directory,
    unjudged,
)

EXTRA: Final = "cluster"
"""The extra of our distribution that brings Dask."""

_CONNECT_LIMIT: Final = 30.0
NO_WORKER_LIMIT: Final = 60.0
"""Seconds that a campaign waits for a worker while there is none."""

_LOOK: Final = 1.0
"""Seconds between looks at the cluster's workers."""

_NOTICE: Final = 0.2
"""Seconds until a task notices that it was cancelled."""

_TRIES: Final = 3
"""How often a cell is handed out, the tries by which Dask makes up for dead workers not counted."""


class ClusterError(Exception):
    """The cluster cannot be used, or not any more; the text is one line."""


Say = Callable[[str], None]


def need_dask() -> None:
    """Raises ClusterError if Dask is not installed."""
    try:
        import distributed  # noqa: F401
    except ImportError as missing:
        raise ClusterError(
            f"--scheduler needs Dask ({missing}): pip install '{DISTRIBUTION}[{EXTRA}]'"
        ) from None


async def run_cells_on(
    address: str,
    cells: Sequence[Cell],
    selection: Selection,
    most: int | None,
    heard: Heard,
    stop: asyncio.Event,
    say: Say,
) -> None:
    """As `campaign.run_cells`, on the workers of the scheduler at `address`, at most `most` cells
    at once (None: as many as the workers have threads). `say` is told what becomes of workers.
    Raises ClusterError, and what `heard` raises."""
    async with _connected(address) as client:
        cluster = _Cluster(client, address, say)
        await cluster.begin(len(cells), stop)
        await _Dealer(cluster, selection, most, heard, stop).deal(cells)


@contextlib.asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Any]:
    """A client of the scheduler. Raises ClusterError if it cannot be reached."""
    from distributed import Client

    # What it would log is told by us, in one line.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    for name in ("client", "core", "comm", "batched"):
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    make: Any = Client
    client = make(address, asynchronous=True, timeout=_CONNECT_LIMIT, set_as_default=False)
    try:
        try:
            await client
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split()) or "no answer"
            raise ClusterError(f"no Dask scheduler at {address}: {why}") from None
        yield client
    finally:
        # The scheduler cancels the tasks of a client that has gone.
        with contextlib.suppress(OSError):
            await client.close()


class _Cluster:
    """The workers of a cluster: which of them may have cells."""

    def __init__(self, client: Any, address: str, say: Say) -> None:
        self.client = client
        self.threads: dict[str, int] = {}
        """The threads of each worker that may have cells, by its address."""
        self._address = address
        self._say = say
        self._refused: dict[str, str] = {}
        self._runs = 0
        self._without = time.monotonic()
        self._next = 0.0

    async def begin(self, runs: int, stop: asyncio.Event) -> None:
        """Wait for workers, or for `stop`; a run of the campaign is one of `runs`. Raises
        ClusterError without a worker, and if one of them, or the scheduler, is not fit for it."""
        self._runs = runs
        await self._check_scheduler()
        await self.look()
        if not self.threads and not self._refused:
            self._say(f"waiting for a worker of {self._address}")
        while not self.threads and not self._refused and not stop.is_set():
            await asyncio.sleep(_LOOK)
            await self.look()
        if self._refused:
            raise ClusterError("; ".join(self._refused.values()))

    async def look(self, *, soon: bool = False) -> None:
        """Bring `threads` up to date, if that was not done just now or `soon` is set. Raises
        ClusterError if the scheduler is lost, or there has been no worker for long."""
        now = time.monotonic()
        if now < self._next and not soon:
            return
        self._next = now + _LOOK
        # Dask would try to connect again for half a minute, but the tasks are lost already.
        if self.client.status != "running":
            raise ClusterError(f"the connection to the scheduler at {self._address} is lost")
        try:
            there: Mapping[str, int] = await self.client.nthreads()
            new = [one for one in there if one not in self.threads and one not in self._refused]
            admitted = await self._admit(new)
        except OSError as error:
            why = " ".join(str(error).split())
            raise ClusterError(f"the scheduler at {self._address} does not answer: {why}") from None
        for gone in self.threads.keys() - there.keys():
            self._say(f"worker {gone} has gone: what it was running runs again elsewhere")
        if self.threads:  # what is refused at the beginning ends the campaign
            for one in new:
                if one in self._refused:
                    self._say(f"{self._refused[one]}; it gets no cells")
        self.threads = {one: there[one] for one in there if one in self.threads or one in admitted}
        if self.threads:
            self._without = now
        elif now - self._without > NO_WORKER_LIMIT:
            raise ClusterError(
                f"the scheduler at {self._address} has had no worker for {NO_WORKER_LIMIT:.0f} s"
            )

    async def _check_scheduler(self) -> None:
        """Raise ClusterError unless the scheduler has this version: it reads each task."""
        try:
            theirs = await self.client.run_on_scheduler(metadata.version, DISTRIBUTION)
        except metadata.PackageNotFoundError:
            theirs = None
        except OSError as error:
            raise ClusterError(
                f"the scheduler at {self._address} does not answer: {error}"
            ) from None
        if (wrong := _not_ours(theirs)) is not None:
            raise ClusterError(f"the scheduler at {self._address} {wrong}")

    async def _admit(self, new: Sequence[str]) -> set[str]:
        """Those of the workers that may have cells; `_refused` says why the others may not. One
        that does not answer is asked again at the next look."""
        for one, theirs in (await self._on(new, metadata.version, DISTRIBUTION)).items():
            if isinstance(theirs, str | metadata.PackageNotFoundError):
                wrong = _not_ours(theirs if isinstance(theirs, str) else None)
                if wrong is not None:
                    self._refused[one] = f"worker {one} {wrong}"
        able = await self._on([one for one in new if one not in self._refused], _unable, self._runs)
        for one, why in able.items():
            if why is not None and not isinstance(why, OSError):
                self._refused[one] = f"worker {one}: {why}"
        return {one for one, why in able.items() if why is None}

    async def _on(
        self, workers: Sequence[str], function: Callable[..., Any], *arguments: object
    ) -> dict[str, Any]:
        """What the function returns on each worker, or what it raises."""
        if not workers:
            return {}
        answers: dict[str, Any] = await self.client.run(
            function, *arguments, workers=list(workers), on_error="return"
        )
        return answers


def _not_ours(theirs: str | None) -> str | None:
    """What is wrong with a version of our package, None if it has none; None if it is this one."""
    ours = version()
    if theirs == ours:
        return None
    if theirs is None:
        return f"does not have {DISTRIBUTION} {ours}"
    return f"has {DISTRIBUTION} {theirs}, and this is {ours}"


def _unable(runs: int) -> str | None:
    """Why a run cannot be made here, on a worker; None if it can."""
    try:
        need_room(longest_directory(runs))
    except ValueError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class _Handed:
    """A cell that was handed out for the `tries`-th time, to any of `workers`."""

    cell: Cell
    tries: int
    workers: frozenset[str]
    future: Any


class _Dealer:
    """Deals the cells out, and hears how they end."""

    def __init__(
        self,
        cluster: _Cluster,
        selection: Selection,
        most: int | None,
        heard: Heard,
        stop: asyncio.Event,
    ) -> None:
        self._cluster = cluster
        self._selection = selection
        self._most = most
        self._heard = heard
        self._stop = stop
        self._name = f"xen-campaign-{secrets.token_hex(4)}"
        self._number = 0
        self._handed: dict[asyncio.Task[Any], _Handed] = {}

    async def deal(self, cells: Iterable[Cell]) -> None:
        """Raises ClusterError, and what `heard` raises."""
        waiting = deque((cell, 1) for cell in cells)
        try:
            while self._handed or (waiting and not self._stop.is_set()):
                await self._cluster.look()
                waiting.extendleft(self._stranded())
                while waiting and not self._stop.is_set() and self._room():
                    self._hand_out(*waiting.popleft())
                if not self._handed:
                    await asyncio.sleep(_LOOK)
                    continue
                done, _ = await asyncio.wait(
                    self._handed, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED
                )
                for one in done:
                    if (again := await self._ended(one)) is not None:
                        waiting.appendleft(again)
        finally:
            for task in self._handed:
                task.cancel()
            await asyncio.gather(*self._handed, return_exceptions=True)

    def _room(self) -> bool:
        threads = sum(self._cluster.threads.values())
        return len(self._handed) < (threads if self._most is None else min(threads, self._most))

    def _hand_out(self, cell: Cell, tries: int) -> None:
        self._number += 1
        key = f"{self._name}-{self._number}"
        workers = frozenset(self._cluster.threads)
        future = self._cluster.client.submit(
            run_as_task,
            key,
            self._selection.request(cell),
            key=key,
            workers=sorted(workers),
            allow_other_workers=False,
        )
        self._handed[asyncio.ensure_future(_result(future))] = _Handed(cell, tries, workers, future)

    def _stranded(self) -> list[tuple[Cell, int]]:
        """Take back what was handed to workers of which none is left."""
        alive = self._cluster.threads.keys()
        lost = [task for task, handed in self._handed.items() if not handed.workers & alive]
        found = []
        for task in lost:
            handed = self._handed.pop(task)
            task.cancel()
            handed.future.release()
            found += self._once_more(handed, "the worker that ran it has died")
        return found

    async def _ended(self, task: asyncio.Task[Any]) -> tuple[Cell, int] | None:
        """Hear how a cell ended; returns it if it is to run again."""
        from distributed import KilledWorker

        handed = self._handed.pop(task)
        try:
            verdict = Verdict.from_json(task.result())
        except KilledWorker as killed:
            again = self._once_more(handed, f"the workers that ran it have died: {killed}")
            return again[0] if again else None
        except CancelledError as cancelled:
            # Somebody has restarted the cluster, or the scheduler has gone.
            await self._cluster.look(soon=True)
            again = self._once_more(handed, f"the cluster has cancelled it: {cancelled}")
            return again[0] if again else None
        except Exception as error:
            verdict = self._unjudged(handed, f"the worker could not run it: {error!r}")
        finally:
            handed.future.release()
        self._heard(handed.cell, verdict)
        return None

    def _once_more(self, handed: _Handed, why: str) -> list[tuple[Cell, int]]:
        """The cell with the number of its next try; none, and a verdict, after the last."""
        if handed.tries < _TRIES:
            return [(handed.cell, handed.tries + 1)]
        self._heard(handed.cell, self._unjudged(handed, why))
        return []

    def _unjudged(self, handed: _Handed, problem: str) -> Verdict:
        cell = handed.cell
        return unjudged(cell.mode.value, str(cell.seeded), " ".join(problem.split()))


async def _result(future: Any) -> Any:
    return await future


# On a worker of the cluster


async def run_as_task(key: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Make the run that is `asked` for (`run_process.request`), as the task `key`; returns the
    fields of its verdict. Nothing of it is left if the task is cancelled. Raises OSError if no
    process can be started."""
    from distributed import get_worker

    worker, process = get_worker(), RunProcess()
    run = asyncio.ensure_future(verdict_by(process, asked))
    try:
        while not run.done():
            await asyncio.wait({run}, timeout=_NOTICE)
            if _cancelled(worker, key):
                run.cancel()
                break
        return (await run).as_json()
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await process.end()
        # Remove what a process that had to be killed has left.
        await asyncio.to_thread(sweep, PREFIX, None, end_all_in)


def _cancelled(worker: Any, key: str) -> bool:
    """Whether nobody waits for the task any more. Dask lets what runs run on, and ignores it."""
    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled"
