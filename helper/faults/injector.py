"""Which faults fire when: counts and chance, without I/O."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple, Protocol

from xen_save_helper.ipc_schema.faults.plan import Fault, Times
from xen_save_helper.ipc_schema.faults.points import Side


class Firing(NamedTuple):
    """A fault that fires the `nth` time that its point is passed. `random` is its own, and the same
    in each run of the plan with the same seed."""

    fault: Fault
    nth: int
    random: Random

    @property
    def errnoval(self) -> int:
        """The errno of a `fail`."""
        return int(getattr(errno, str(self.fault.action.value)))

    @property
    def reason(self) -> str:
        """The text of a failure that it causes."""
        return f"fault: {self.fault}"

    def error(self) -> OSError:
        """The exception of a `fail`."""
        return OSError(self.errnoval, self.reason)


class Strike(Protocol):
    """Called when a point is passed: does what is to be done to the process, and yields the other
    firings, in order, for the caller to carry out."""

    def __call__(self, point: str, at: int | None = None) -> Iterator[Firing]: ...


class Counts(Protocol):
    """The counts of all processes of a plan: `shared_counts.SharedCounts`."""

    def next(self, fault: str) -> int: ...


class Injector:
    """Counts how often each fault's point is passed, from any thread. Times of all processes are
    counted in `counts`, which is needed if any of `faults` has them.

    While `side` is unknown, only faults fire that may fire at either side.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        seed: int,
        side: Side | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.side = side
        self.faults = faults
        self._counts_of_all = counts
        self._seed = seed
        self._passed = [0] * len(faults)
        self._chance = [Random(f"{seed}/{index}") for index in range(len(faults))]
        self._by_point: dict[str, list[int]] = {}
        for index, fault in enumerate(faults):
            self._by_point.setdefault(fault.point.name, []).append(index)
        self._lock = threading.Lock()

    def passes(self, point: str, at: int | None = None) -> list[Firing]:
        """What fires, in the plan's order, when the point with the name `point` is passed; `at` is
        the offset or pfn of a point that has one."""
        indices = self._by_point.get(point)
        if indices is None:
            return []
        with self._lock:
            return [
                Firing(self.faults[index], self._passed[index], self._random(index))
                for index in indices
                if self.faults[index].at == at and self._is_here(index) and self._counts(index)
            ]

    def places(self, point: str) -> list[int]:
        """The offsets or pfns at which faults of the point `point` may fire here, in order."""
        indices = self._by_point.get(point, [])
        found = {self.faults[index].at for index in indices if self._is_here(index)}
        return sorted(at for at in found if at is not None)

    @property
    def here(self) -> list[Fault]:
        """The faults that may fire here."""
        return [fault for index, fault in enumerate(self.faults) if self._is_here(index)]

    def has(self, point: str) -> bool:
        """Whether any fault may fire here at the point."""
        return any(fault.point.name == point for fault in self.here)

    def _is_here(self, index: int) -> bool:
        sides = self.faults[index].sides
        if not sides:
            return True
        return self.side in sides if self.side is not None else len(sides) == len(Side)

    def _counts(self, index: int) -> bool:
        times: Times = self.faults[index].times
        if times.of_all:
            assert self._counts_of_all is not None, "the plan has a place for its counts"
            self._passed[index] = self._counts_of_all.next(self._name(index))
        else:
            self._passed[index] += 1
        if times.percent is not None:
            return self._chance[index].random() * 100 < times.percent
        passed = self._passed[index]
        return passed >= times.nth if times.onwards else passed == times.nth

    def _name(self, index: int) -> str:
        """The fault's name for all processes: its text, and its number among equal ones."""
        fault = self.faults[index]
        earlier = self.faults[:index].count(fault)
        return f"{fault} ({earlier + 1})" if earlier else str(fault)

    def _random(self, index: int) -> Random:
        return Random(f"{self._seed}/{index}/{self._passed[index]}")
