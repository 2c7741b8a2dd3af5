"""The judge is judged: each way in which a reader can fail is seen, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import judge as judging
from tests.fuzz.judge import MEMORY, Clock, Tally, choose, judge, run, warm_up
from tests.fuzz.mutations import Seed
from tests.fuzz.target import BrokenPromiseError, Target, promise
from xen_save_helper.ipc_schema.errors import DecodeError

ROOT = Path(__file__).parents[2]
INPUT = b"sixteen octets.."


def target(feed: Callable[[bytes], object], weight: int = 1) -> Target:
    def fed(data: bytes, _chance: Random) -> str:
        return str(feed(data) or "decoded")

    return Target("reader", [Seed(INPUT)], fed, weight)


def raising(error: BaseException) -> Target:
    def feed(_data: bytes) -> None:
        raise error

    return target(feed)


def judged(reader: Target) -> tuple[str, str]:
    return judge(reader, INPUT, Random(0))


def test_what_is_decoded_or_refused_in_the_promised_way_has_not_failed() -> None:
    assert judged(target(lambda _data: "decoded")) == ("decoded", "")
    assert judged(raising(DecodeError("libxl record", 16, "found 1, want 2"))) == ("refused", "")


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (MemoryError(), "MemoryError"),
        (ValueError("not DecodeError itself"), "ValueError"),
        (AssertionError(), "AssertionError"),
        (BrokenPromiseError("other octets"), "other octets"),
        (DecodeError("record", 17, "past the end"), "offset 0x11 of 16 octets"),
        (DecodeError("record", -1, "before the start"), "offset -0x1"),
        (DecodeError("", 0, "what?"), "does not say what is wrong"),
        (DecodeError("record", 0, ""), "does not say what is wrong"),
        (DecodeError("record", 0, "x" * 1000), "characters"),
        (DecodeError("record", 0, "line\nline"), "not printable"),
        (DecodeError("record", 0, "\x1b[2J"), "not printable"),
    ],
)
def test_every_other_end_is_a_failure(error: Exception, what: str) -> None:
    outcome, wrong = judged(raising(error))
    assert outcome == "failed"
    assert what in wrong


def test_a_reader_that_never_ends_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "LIMIT", 0.05)

    def feed(_data: bytes) -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue

    clock = Clock()
    with clock.running():
        clock.next()
        assert judged(target(feed)) == ("failed", judging.HANGS)
        clock.next()
        assert judged(target(lambda _data: "decoded")) == ("decoded", "")


@pytest.mark.parametrize("take", ["bytearray(SIZE)", "bytes(SIZE)", "numpy.empty(SIZE)"])
def test_a_reader_that_takes_too_much_memory_is_seen_though_it_never_touches_it(take: str) -> None:
    little, much = MEMORY // 2, MEMORY + (8 << 20)
    program = (
        "import numpy\n"
        "from tests.fuzz import judge\n"
        "from tests.fuzz.test_judge import judged, target\n"
        "judge.limit_memory()\n"
        f"print(judged(target(lambda _: len({take.replace('SIZE', str(little))}))))\n"
        f"print(judged(target(lambda _: len({take.replace('SIZE', str(much))}))))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    fits, does_not = ended.stdout.splitlines()
    assert str(little) in fits
    assert "MemoryError" in does_not


def test_a_failure_is_counted_with_what_makes_it_again() -> None:
    def feed(data: bytes) -> None:
        promise(data.startswith(b"six"), "it begins otherwise")

    reader = target(feed)
    tally = Tally()
    for index in range(400):
        run([reader], "records", "seed", index, tally)
    assert tally.inputs == 400
    assert tally.failures
    assert tally.outcomes["reader: failed"] == len(tally.failures)
    failure = tally.failures[0]
    again, chance = choose([reader], failure.seed, failure.kind, failure.index)
    assert again.input(chance) == failure.data
    assert "it begins otherwise" in judge(reader, failure.data, chance)[1]


def test_targets_are_chosen_by_their_weight() -> None:
    rare, common = target(lambda _: "rare"), target(lambda _: "common", weight=9)
    chosen = [choose([rare, common], "seed", "records", index)[0] for index in range(2000)]
    assert 100 < sum(each is rare for each in chosen) < 300


def test_a_seed_that_is_refused_is_no_seed() -> None:
    with pytest.raises(ValueError, match="reader: seed 0"):
        warm_up([raising(KeyError("x"))])
