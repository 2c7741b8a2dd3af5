from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.minimise import minimise
from tests.fuzz.mutations import LARGEST, Seed, Words, joined, mutate
from tests.fuzz.worker import KINDS, input_of, targets_of

SEEDS = [joined(b"head", b"\x10\0\0\0length", b"body"), Seed(b""), Seed(b"x" * 300)]
WORDS = Words(tokens=(b"token",), openers=(b"[",))


def made(start: int, count: int) -> list[bytes]:
    return [mutate(Random(index), SEEDS, WORDS) for index in range(start, start + count)]


def test_the_same_chance_makes_the_same_input() -> None:
    assert made(0, 500) == made(0, 500)


def test_inputs_differ_from_each_other_and_from_their_seeds() -> None:
    inputs = made(0, 2000)
    assert len(set(inputs)) > 1200
    assert sum(data in [seed.data for seed in SEEDS] for data in inputs) < 500


def test_every_kind_of_damage_comes() -> None:
    inputs = made(0, 5000)
    assert any(b"[" * 5000 in data for data in inputs), "deep nesting"
    assert any(b"token" in data for data in inputs)
    assert any(b"\xff" * 8 in data for data in inputs), "2^64-1"
    assert any(b"\0\0\0\x40" in data for data in inputs), "a length of 1 GiB"
    assert any(data.count(b"length") > 1 for data in inputs), "duplicates"
    assert any(b"head" in data and b"xxxxxxxx" in data for data in inputs), "splices"
    assert any(data and SEEDS[0].data.startswith(data) for data in inputs), "truncations"
    assert max(map(len, inputs)) <= LARGEST


def test_marks_are_where_the_parts_begin() -> None:
    assert joined(b"a", b"", b"bcd", b"e") == Seed(b"abcde", (0, 1, 1, 4))


def test_each_target_gets_its_share_and_every_input_can_be_made_again() -> None:
    for kind in KINDS:
        targets = targets_of(kind)
        try:
            names = [input_of(targets, kind, "1", index)[0].name for index in range(1000)]
            assert set(names) == {target.name for target in targets}
            assert input_of(targets, kind, "1", 5) == input_of(targets, kind, "1", 5)
        finally:
            for target in targets:
                target.close()


@given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 255))
def test_a_smaller_input_fails_alike(data: bytes, first: int, second: int) -> None:
    needed = bytes([first, second])

    def fails(octets: bytes) -> bool:
        return needed in octets

    small = minimise(data + needed + data, fails)
    assert small == needed


def test_what_does_not_fail_again_stays_as_it_is() -> None:
    assert minimise(b"whatever", lambda _data: False) == b"whatever"
