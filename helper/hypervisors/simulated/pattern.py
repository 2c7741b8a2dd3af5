"""The contents of a page: a pattern of all its 4096 bytes that tells which write it is.

Word `j` of a page is `base(seed, pfn, write number) ^ TABLE[j]`. Another page, another write,
another place within the page, or a mixture of two writes, shows in every word that is wrong.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

WORDS_PER_PAGE: Final = 512
CHUNK: Final = 256
"""Pages compared at a time, so that the temporaries stay in the cache."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_STRIDE: Final = np.uint64(0xD1342543DE82EF95)


def _mix(x: Words) -> Words:
    """The finalizer of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


TABLE: Final = _mix(np.arange(1, WORDS_PER_PAGE + 1, dtype=np.uint64) * _GOLDEN)


def bases(seed: int, pfns: Words, writes: Words) -> Words:
    """The base of each of the pages `pfns` after its write `writes`."""
    with np.errstate(over="ignore"):
        return _mix(_mix(pfns * _GOLDEN + np.uint64(seed)) + writes * _STRIDE)


def _chunks(pfns: Words) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(pfns), CHUNK)]


def _is_run(pfns: Words) -> bool:
    return len(pfns) == int(pfns[-1]) - int(pfns[0]) + 1 and bool((np.diff(pfns) == 1).all())


def write(memory: Words, seed: int, pfns: Words, writes: Words) -> None:
    """Write each page's pattern into `memory`, which has a row for each pfn."""
    for part in _chunks(pfns):
        some = pfns[part]
        base = bases(seed, some, writes[part])[:, np.newaxis]
        if _is_run(some):
            first = int(some[0])
            np.bitwise_xor(base, TABLE, out=memory[first : first + len(some)])
        else:
            memory[some] = base ^ TABLE


def first_wrong(
    memory: Words, seed: int, pfns: Words, writes: Words, spared: tuple[int, slice] = (-1, slice(0))
) -> int | None:
    """The index in `pfns` of the first page that is not at its write; compares whole pages, but
    for the words of one pfn that are `spared`."""
    for part in _chunks(pfns):
        some = pfns[part]
        base = bases(seed, some, writes[part])[:, np.newaxis]
        first = int(some[0])
        pages = memory[first : first + len(some)] if _is_run(some) else memory[some]
        right = (pages ^ TABLE) == base
        right[some == spared[0], spared[1]] = True
        if not right.all():
            return int(part.start) + int(np.flatnonzero(~right.all(axis=1))[0])
    return None


def describe(page: Words, seed: int, pfn: int, expected: int) -> str:
    """Describe, for a person, what `page` holds in place of write `expected` of `pfn`."""
    if not page.any():
        return "only zeros"
    found = page ^ TABLE
    near = np.arange(max(0, expected - 1000), expected + 1000, dtype=np.uint64)
    of_writes = dict(
        zip(bases(seed, np.full_like(near, pfn), near).tolist(), near.tolist(), strict=True)
    )
    values, counts = np.unique(found, return_counts=True)
    parts = [
        f"write {of_writes[value]} in {count} of {WORDS_PER_PAGE} words"
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        if value in of_writes
    ]
    unknown = WORDS_PER_PAGE - sum(
        count
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        if value in of_writes
    )
    if unknown:
        parts.append(f"foreign data in {unknown} of {WORDS_PER_PAGE} words")
    return ", ".join(parts)
