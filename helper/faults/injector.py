"""Which faults fire when: counts and chance, without I/O."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from xen_save_helper.ipc_schema.faults.plan import Fault
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


class Injector:
    """Counts how often each fault's point is passed, from any thread. `count` counts over all
    processes, and is needed if any of `faults` has such times.

    While `side` is unknown, only faults fire that may fire at either side.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        seed: int,
        side: Side | None = None,
        count: Callable[[str], int] | None = None,
    ) -> None:
        self.side = side
        self.faults = faults
        self._count_of_all = count
        self._seed = seed
        self._passed = [0] * len(faults)
        self._chance = [Random(f"{seed}/{index}") for index in range(len(faults))]
        self._lock = threading.Lock()

    @property
    def here(self) -> list[Fault]:
        """The faults that may fire here."""
        return [fault for fault in self.faults if self._is_here(fault)]

    def has(self, point: str) -> bool:
        """Whether any fault may fire here at the point."""
        return any(fault.point.name == point for fault in self.here)

    def places(self, point: str) -> list[int]:
        """The offsets or pfns at which faults of the point `point` may fire here, in order."""
        found = {fault.at for fault in self.here if fault.point.name == point}
        return sorted(at for at in found if at is not None)

    def passes(self, point: str, at: int | None = None) -> list[Firing]:
        """What fires, in the plan's order, when the point with the name `point` is passed; `at` is
        the offset or pfn of a point that has one."""
        with self._lock:
            return [
                Firing(fault, nth, Random(f"{self._seed}/{index}/{nth}"))
                for index, fault in enumerate(self.faults)
                if fault.point.name == point and fault.at == at and self._is_here(fault)
                if (nth := self._count(index)) and self._fires(index, nth)
            ]

    def _is_here(self, fault: Fault) -> bool:
        if not fault.sides:
            return True
        return self.side in fault.sides if self.side is not None else len(fault.sides) == len(Side)

    def _count(self, index: int) -> int:
        if self.faults[index].times.of_all:
            assert self._count_of_all is not None, "the plan has a place for its counts"
            return self._count_of_all(self._name(index))
        self._passed[index] += 1
        return self._passed[index]

    def _fires(self, index: int, nth: int) -> bool:
        times = self.faults[index].times
        if times.percent is not None:
            return self._chance[index].random() * 100 < times.percent
        return nth >= times.nth if times.onwards else nth == times.nth

    def _name(self, index: int) -> str:
        """The fault's name for all processes: its text, and its number among equal ones."""
        fault = self.faults[index]
        earlier = self.faults[:index].count(fault)
        return f"{fault} ({earlier + 1})" if earlier else str(fault)
