"""What a guest writes, in closed form.

Write number `i` of a guest (from 0) goes to a page that follows from the workload alone, so a guest
that knows how many writes it has made knows which write every page must hold, without remembering
any page. A page that was never written is at write 0, as the guest was built.

Writes go in passes over the workload's pages, each page once a pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from xen_save_helper.helper.hypervisors.simulated.kinds import Kind
from xen_save_helper.helper.hypervisors.simulated.pattern import Words

_ORDERS: Final = 16
"""Different orders that the passes of a random workload use in turn."""

HOT_SHARE: Final = 8
"""The hot set of a random workload is one page in this many, spread over all memory."""


def _coprime(wanted: int, modulus: int) -> int:
    """The first number from `wanted` on that has an inverse modulo `modulus`."""
    candidate = wanted % modulus
    while math.gcd(candidate, modulus) != 1:
        candidate += 1
    return candidate


@dataclass(frozen=True)
class Workload:
    """The writes of a guest with `pages` pages of memory (pfn 0 on)."""

    kind: Kind
    pages: int
    seed: int

    @cached_property
    def set_size(self) -> int:
        """The number of pages that are ever written."""
        return max(1, self.pages // HOT_SHARE) if self.kind is Kind.RANDOM else self.pages

    @cached_property
    def _spread(self) -> tuple[int, int]:
        """Multiplier that spreads the hot set over memory, and its inverse."""
        multiplier = _coprime(int(self.pages * 0.618) | 1, self.pages)
        return multiplier, pow(multiplier, -1, self.pages)

    def _order(self, number: int) -> tuple[int, int, int]:
        """Multiplier, its inverse and offset that order pass `number` of a random workload."""
        turn = number % _ORDERS
        size = self.set_size
        multiplier = _coprime(int(size * (0.31 + 0.04 * turn)) | 1, size)
        return multiplier, pow(multiplier, -1, size), (self.seed + 7919 * turn) % size

    def targets(self, done: int, count: int) -> tuple[Words, Words]:
        """Pfns and write numbers of the next writes after `done`: `count` of them, fewer at the
        end of a pass, so that no pfn occurs twice."""
        if self.kind is Kind.IDLE:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        number, position = divmod(done, self.set_size)
        end = min(position + count, self.set_size)
        pfns = np.arange(position, end, dtype=np.uint64)
        if self.kind is Kind.RANDOM:
            multiplier, _, offset = self._order(number)
            hot = (pfns * np.uint64(multiplier) + np.uint64(offset)) % np.uint64(self.set_size)
            pfns = hot * np.uint64(self._spread[0]) % np.uint64(self.pages)
        return pfns, np.full(len(pfns), number + 1, np.uint64)

    def writes_of(self, pfns: Words, done: int) -> Words:
        """The write that each page holds after `done` writes."""
        if self.kind is Kind.IDLE:
            return np.zeros(len(pfns), np.uint64)
        number, position = divmod(done, self.set_size)
        if self.kind is not Kind.RANDOM:
            return np.uint64(number) + (pfns < np.uint64(position)).astype(np.uint64)
        size = np.uint64(self.set_size)
        hot = pfns * np.uint64(self._spread[1]) % np.uint64(self.pages)
        _, inverse, offset = self._order(number)
        turn = (hot + size - np.uint64(offset)) % size * np.uint64(inverse) % size
        writes = np.uint64(number) + (turn < np.uint64(position)).astype(np.uint64)
        return np.where(hot < size, writes, np.uint64(0))
