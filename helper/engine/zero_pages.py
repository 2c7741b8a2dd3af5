"""Which mapped pages hold nothing but zeros, and the bytes of the others.

A sparse save alone imports this, with numpy: it looks at every word of the guest's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.ipc_schema.hints import Final

_WORDS: Final = PAGE_SIZE // 8
_SAMPLED: Final = slice(0, _WORDS, 64)
"""A cache line in eight: few pages in use have zeros at all of these places."""
_AT_ONCE: Final = 32
"""Pages that are looked through together, so that they stay in the cache."""


def find_zero_pages(views: Sequence[memoryview]) -> NDArray[np.bool_]:
    """For each page in `views`, whether all its bytes are 0."""
    return np.concatenate([_zero_pages_of(view) for view in views])


def _zero_pages_of(view: memoryview) -> NDArray[np.bool_]:
    pages = np.frombuffer(view, np.uint64).reshape(-1, _WORDS)
    zero: NDArray[np.bool_] = pages[:, _SAMPLED].max(axis=1) == 0
    candidates = np.flatnonzero(zero)
    for start in range(0, len(candidates), _AT_ONCE):
        some = candidates[start : start + _AT_ONCE]
        zero[some] = pages[some].max(axis=1) == 0
    return zero


def without(views: Sequence[memoryview], zero: NDArray[np.bool_]) -> list[memoryview]:
    """The parts of `views` whose pages are not `zero`; nothing is copied."""
    parts: list[memoryview] = []
    first = 0
    for view in views:
        count = len(view) // PAGE_SIZE
        kept = np.zeros(count + 2, np.int8)
        kept[1:-1] = ~zero[first : first + count]
        edges: list[int] = (np.flatnonzero(np.diff(kept)) * PAGE_SIZE).tolist()
        parts += [view[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]
        first += count
    return parts
