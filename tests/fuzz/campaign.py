"""Many inputs in several processes, and what kills one of them or keeps it for ever."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.fuzz.judge import LIMIT, Tally
from tests.fuzz.worker import PLACE, input_of, targets_of
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

_ROOT: Final = Path(__file__).parents[2]
WORKER: Final = (sys.executable, "-m", "tests.fuzz.worker")
STUCK: Final = 12 * LIMIT
"""Seconds at one input, start and minimising included, after which a process is stuck where its own
clock does not reach it."""
_POLL: Final = 0.1
_NOT_YET: Final = 2**64 - 1
"""The place of a process that has not begun."""


@dataclass
class Result:
    """What came of one kind of input. `failures` are `judge.Failure`s as JSON has them."""

    kind: str
    tally: Tally = field(default_factory=Tally)
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**self.tally.as_dict(), "seconds": self.seconds, "failures": self.failures}


class _Worker:
    """One process, and the part of the inputs that it still has to do."""

    def __init__(self, command: list[str], indices: range, directory: Path) -> None:
        self.indices = indices
        directory = directory / str(indices.start)
        directory.mkdir()
        self._directory = directory
        self._place_file = directory / "place"
        self._place_file.write_bytes(PLACE.pack(_NOT_YET))
        self._out = (directory / "out").open("w+b")
        first, step, end = map(str, (indices.start, indices.step, indices.stop))
        self._process = subprocess.Popen(
            [*command, first, step, end, str(self._place_file)],
            cwd=_ROOT,
            stdout=self._out,
            env={**os.environ, "TMPDIR": str(directory)},
        )
        self._seen = _NOT_YET
        self._since = time.monotonic()

    def place(self) -> int | None:
        """The index of the input that it is at, None before the first."""
        with (
            self._place_file.open("rb") as file,
            mmap.mmap(file.fileno(), PLACE.size, prot=mmap.PROT_READ) as octets,
        ):
            (index,) = PLACE.unpack(octets)
        return None if index == _NOT_YET else index

    def ended(self) -> str | None:
        """None while it is at work, empty where it came to its end, else what ended it."""
        status = self._process.poll()
        if status is not None:
            if status == 0:
                return ""
            return f"the process ended with status {status}"
        now, place = time.monotonic(), self.place()
        if place != self._seen:
            self._seen, self._since = place if place is not None else _NOT_YET, now
        elif now - self._since > STUCK:
            self.kill()
            return f"no end within {STUCK} s, and nothing could interrupt it"
        return None

    def said(self) -> Iterator[dict[str, Any]]:
        """Its lines, once it has ended."""
        out: IO[bytes] = self._out
        out.seek(0)
        for line in out:
            yield json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and what it left where it was killed."""
        if self._process.poll() is None:
            self.kill()
        self._out.close()
        for path in self._directory.glob("fuzz-*/host"):
            host = SimulatedHost(path)
            for domain in host.domains():
                host.destroy(domain.domid)


class Campaign:
    """`count` inputs of `kind`, in `jobs` processes of `program`."""

    def __init__(
        self, kind: str, seed: str, count: int, jobs: int, program: Sequence[str] = WORKER
    ) -> None:
        self._program = program
        self._kind = kind
        self._seed = seed
        self._count = count
        self._jobs = jobs

    def run(self, show: Callable[[dict[str, Any]], None]) -> Result:
        """To its end; each failure is given to `show`. Raises RuntimeError where a process does not
        get as far as its first input."""
        result = Result(self._kind)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as directory, ExitStack() as stack:

            def start(indices: range) -> _Worker:
                command = [*self._program, self._seed, self._kind]
                worker = _Worker(command, indices, Path(directory))
                stack.callback(worker.close)
                return worker

            jobs = min(self._jobs, self._count)
            working = [start(range(job, self._count, jobs)) for job in range(jobs)]
            while working:
                time.sleep(_POLL)
                for worker in tuple(working):
                    if (why := worker.ended()) is None:
                        continue
                    working.remove(worker)
                    self._take(worker, result, show)
                    if why:
                        place = self._killed(worker, why, result, show)
                        if rest := worker.indices[worker.indices.index(place) + 1 :]:
                            working.append(start(rest))
        result.seconds = round(time.monotonic() - started, 1)
        return result

    def _take(
        self, worker: _Worker, result: Result, show: Callable[[dict[str, Any]], None]
    ) -> None:
        for line in worker.said():
            if "failure" in line:
                result.failures.append(line["failure"])
                show(line["failure"])
            else:
                result.tally.add(line["tally"])

    def _killed(
        self,
        worker: _Worker,
        why: str,
        result: Result,
        show: Callable[[dict[str, Any]], None],
    ) -> int:
        """Tell of the input that a process has died of; its index."""
        place = worker.place()
        if place is None:
            raise RuntimeError(f"{why}, before its first input")
        target, data = input_of(targets_of(self._kind), self._kind, self._seed, place)
        failure = {
            "kind": self._kind,
            "target": target.name,
            "seed": self._seed,
            "index": place,
            "what": why,
            "data": data.hex(),
        }
        result.failures.append(failure)
        show(failure)
        result.tally.inputs += 1 + worker.indices.index(place)
        return place
