"""One input, and what must hold of it: an end, in time, in bounded memory, of a promised kind."""

from __future__ import annotations

import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from tests.fuzz.target import REFUSED, Target, judge_error
from xen_save_helper.ipc_schema.errors import DecodeError

LIMIT: Final = 5.0
"""Seconds for an input; most take microseconds."""
HANGS: Final = f"no end within {LIMIT:g} s"
MEMORY: Final = 64 << 20
"""Octets that the process may take beyond what it has after the first valid inputs, address space
and all: an input is 256 KiB at most."""


class HangError(BaseException):
    """An input took longer than LIMIT. No `except Exception` of the reader takes it."""


@dataclass(frozen=True)
class Failure:
    """`seed` and `index` make the input again."""

    kind: str
    target: str
    seed: str
    index: int
    what: str
    data: bytes

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "data": self.data.hex()}


@dataclass
class Tally:
    """What came of the inputs, by target and outcome; the slowest, and the most memory."""

    inputs: int = 0
    octets: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    slowest_index: int = 0
    memory: int = 0
    """Octets that resident memory has grown at its highest."""
    failures: list[Failure] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the failures."""
        return {**vars(self), "outcomes": dict(self.outcomes), "failures": len(self.failures)}

    def add(self, more: dict[str, Any]) -> None:
        """What another process counted, as its `as_dict`."""
        self.inputs += more["inputs"]
        self.octets += more["octets"]
        self.outcomes += Counter(more["outcomes"])
        self.memory = max(self.memory, more["memory"])
        if more["slowest"] > self.slowest:
            self.slowest, self.slowest_index = more["slowest"], more["slowest_index"]


def choose(targets: Sequence[Target], seed: str, kind: str, index: int) -> tuple[Target, Random]:
    """Which target input `index` is for, and the chance that makes it."""
    chance = Random(f"{seed}/{kind}/{index}")
    return chance.choices(targets, [target.weight for target in targets])[0], chance


def judge(target: Target, data: bytes, chance: Random) -> tuple[str, str]:
    """How the reader ended, and what was wrong with that, empty where nothing was."""
    try:
        return target.feed(data, chance), ""
    except DecodeError as error:
        try:
            judge_error(error, len(data))
        except Exception as wrong:
            return "failed", f"{wrong} (a DecodeError)"
        return REFUSED, ""
    except HangError:
        return "failed", HANGS
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:1000]


class Clock:
    """Raises HangError in the midst of an input that takes longer than LIMIT, and at the latest
    after twice that: a timer for each input would cost more than most inputs do."""

    def __init__(self) -> None:
        self._turn = 0
        self._seen = -1

    def next(self) -> None:
        """Another input begins."""
        self._turn += 1

    def _tick(self, _signum: int, _frame: object) -> None:
        if self._seen == self._turn:
            self._seen = -1
            raise HangError
        self._seen = self._turn

    @contextmanager
    def running(self) -> Iterator[None]:
        """In the main thread."""
        before = signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, LIMIT, LIMIT)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def peak_memory() -> int:
    """Octets of resident memory at their highest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warm_up(targets: Sequence[Target]) -> None:
    """Give each target its valid inputs: what is loaded and kept once is there afterwards.

    Raises ValueError for a seed that is refused: it would test little.
    """
    for target in targets:
        for number, seed in enumerate(target.seeds):
            for turn in range(2):
                outcome, wrong = judge(target, seed.data, Random(turn))
                if wrong:
                    raise ValueError(f"{target.name}: seed {number}: {outcome} {wrong}")


def limit_memory() -> None:
    """From here on this process has no more than MEMORY beyond what it has: then MemoryError, which
    is a failure."""
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))


def run(targets: Sequence[Target], kind: str, seed: str, index: int, tally: Tally) -> None:
    """Make input `index`, judge it, count it."""
    target, chance = choose(targets, seed, kind, index)
    data = target.input(chance)
    started = time.perf_counter()
    outcome, wrong = judge(target, data, chance)
    seconds = time.perf_counter() - started
    tally.inputs += 1
    tally.octets += len(data)
    tally.outcomes[f"{target.name}: {outcome}"] += 1
    if seconds > tally.slowest:
        tally.slowest, tally.slowest_index = seconds, index
    if wrong:
        tally.failures.append(Failure(kind, target.name, seed, index, wrong, data))
