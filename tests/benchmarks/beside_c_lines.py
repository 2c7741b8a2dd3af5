"""The rows that have C's helper as their limit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from tests.benchmarks import limits
from tests.benchmarks.beside_c import Bench, Run, Side, bench
from tests.benchmarks.line import Line

GIB = 1 << 30
MIB = 1 << 20

SMALL = 64 * MIB
"""A guest with which a helper's start counts."""
PRIVATE = 12 * MIB
"""The memory of its own that a helper may have."""

_C = "C's helper"
_Runs = list[tuple[Run, Run]]
"""Ours and C's, in turn."""


def beside_c(memory: int, runs: int) -> Iterator[Line]:
    """Raises PackageUnavailableError where Debian's packages cannot be had."""
    with bench(memory) as large:
        large.save_to_file()
        for where, processors, reaches in (
            ("", os.sched_getaffinity(0), (1.5, 1.3, 1.3)),
            (", one processor", {limits.NEAR}, (None, None, None)),
        ):
            with limits.on(*processors):
                yield from _rates(large, runs, where, reaches)
        yield from _private_memory(large)
    with bench(SMALL) as small:
        small.save_to_file()
        yield from _whole(small, 2 * runs)


def _rates(
    large: Bench, runs: int, where: str, reaches: tuple[float | None, ...]
) -> Iterator[Line]:
    of_save, of_live, of_restore = reaches
    others = limits.Others()
    saves = _in_turn(runs, large.save)
    load = others.processors()
    yield _rate(f"save into a socket{where}", saves, of_save, load)
    seconds = [(ours.processor / ours.gib, c.processor / c.gib) for ours, c in saves]
    what = f"processor time of a save, a GiB{where}"
    yield Line(what, "s", seconds, _C, None if where else 0.8, others=load)
    others = limits.Others()
    lives = _in_turn(runs, lambda side: large.save(side, live=True))
    yield _rate(f"live save, 10 % dirty a round{where}", lives, of_live, others.processors())
    others = limits.Others()
    restores = _in_turn(runs, large.restore)
    yield _rate(f"restore from a socket{where}", restores, of_restore, others.processors())


def _rate(what: str, runs: _Runs, reach: float | None, load: float) -> Line:
    pairs = [(ours.rate / GIB, c.rate / GIB) for ours, c in runs]
    return Line(what, "GiB/s", pairs, _C, reach, at_least=True, others=load)


def _private_memory(large: Bench) -> Iterator[Line]:
    for what, run in (
        ("a save", large.save(Side.OURS, watch=True)),
        ("a live save", large.save(Side.OURS, live=True, watch=True)),
        ("a restore", large.restore(Side.OURS, watch=True)),
    ):
        pair = (run.private / MIB, PRIVATE / MIB)
        yield Line(f"private memory of {what}", "MiB", [pair], "what it may have", 1)


def _whole(small: Bench, runs: int) -> Iterator[Line]:
    for name, work in (("save", small.save), ("restore", small.restore)):
        others = limits.Others()
        pairs = [(1e3 * ours.whole, 1e3 * c.whole) for ours, c in _in_turn(runs, work)]
        what = f"whole helper, {name} of {SMALL // MIB} MiB"
        yield Line(what, "ms", pairs, _C, 1.5, others=others.processors())


def _in_turn(runs: int, work: Callable[[Side], Run]) -> _Runs:
    both = []
    for _ in range(runs):
        c = work(Side.C)
        both.append((work(Side.OURS), c))
    return both
