"""A process that fuzzes: every `step`-th input from `first` on, until `end`.

    python -m tests.fuzz.worker SEED KIND FIRST STEP END PLACE

Writes a JSON line for each failure, and one for its tally at the end. In the file PLACE, 8 octets,
stands the index of the input that it is at: who started it sees there what it died of.
"""

from __future__ import annotations

import json
import mmap
import struct
import sys
from pathlib import Path
from typing import Final

from tests.fuzz import consumers, message_targets, record_targets, stream_targets
from tests.fuzz.judge import (
    HANGS,
    Clock,
    Failure,
    HangError,
    Tally,
    choose,
    judge,
    limit_memory,
    peak_memory,
    run,
    warm_up,
)
from tests.fuzz.minimise import minimise
from tests.fuzz.target import Target

KINDS: Final = ("messages", "records")
_MINIMISED: Final = 5
"""Failures that are made smaller; more of them are mostly the same."""
ENOUGH: Final = 40
ENOUGH_HANGS: Final = 4
"""Failures after which a process stops: where each is a hang, it would else go on for days."""
_SAME: Final = 40
"""Characters of what went wrong that say whether it is the same."""

PLACE: Final = struct.Struct("<Q")


def targets_of(kind: str) -> list[Target]:
    """What inputs of a kind (of KINDS) are given to."""
    if kind == "messages":
        return message_targets.targets()
    return record_targets.targets() + stream_targets.targets() + consumers.targets()


def input_of(targets: list[Target], kind: str, seed: str, index: int) -> tuple[Target, bytes]:
    """Input `index` of the fuzz that `seed` makes."""
    target, chance = choose(targets, seed, kind, index)
    return target, target.input(chance)


def fuzz(kind: str, seed: str, indices: range, place: mmap.mmap) -> Tally:
    """Judge these inputs, and print failures as they come; no more inputs after ENOUGH of them."""
    targets = targets_of(kind)
    tally = Tally()
    clock = Clock()
    try:
        warm_up(targets)
        before = peak_memory()
        limit_memory()
        with clock.running():
            for index in indices:
                PLACE.pack_into(place, 0, index)
                clock.next()
                count = len(tally.failures)
                run(targets, kind, seed, index, tally)
                if len(tally.failures) > count:
                    _tell(targets, tally, clock)
                hangs = sum(failure.what == HANGS for failure in tally.failures)
                if hangs == ENOUGH_HANGS or len(tally.failures) == ENOUGH:
                    break
        tally.memory = peak_memory() - before
    finally:
        for target in targets:
            target.close()
    return tally


def _tell(targets: list[Target], tally: Tally, clock: Clock) -> None:
    failure = tally.failures[-1]
    if failure.what != HANGS and len(tally.failures) <= _MINIMISED:
        failure = smaller(targets, failure, clock)
        tally.failures[-1] = failure
    print(json.dumps({"failure": failure.as_dict()}), flush=True)


def smaller(targets: list[Target], failure: Failure, clock: Clock) -> Failure:
    """The same failure, of a smaller input where there is one."""
    target = next(target for target in targets if target.name == failure.target)

    def fails(data: bytes) -> bool:
        clock.next()
        # What chance decided besides the input is as it was.
        _, chance = choose(targets, failure.seed, failure.kind, failure.index)
        target.input(chance)
        return judge(target, data, chance)[1][:_SAME] == failure.what[:_SAME]

    try:
        data = minimise(failure.data, fails)
    except HangError:
        return failure
    return Failure(**{**vars(failure), "data": data})


def main(arguments: list[str]) -> None:
    seed, kind, first, step, end, path = arguments
    with Path(path).open("r+b") as file, mmap.mmap(file.fileno(), PLACE.size) as place:
        tally = fuzz(kind, seed, range(int(first), int(end), int(step)), place)
    print(json.dumps({"tally": tally.as_dict()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
