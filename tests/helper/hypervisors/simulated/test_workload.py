"""Workloads and patterns: a guest must know every page's write from its write count alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.hypervisors.simulated import pattern
from xen_save_helper.helper.hypervisors.simulated.kinds import Kind
from xen_save_helper.helper.hypervisors.simulated.registers import ForeignContextError, Registers
from xen_save_helper.helper.hypervisors.simulated.workload import Workload


@given(
    kind=st.sampled_from(Kind),
    pages=st.integers(1, 300),
    seed=st.integers(0, 2**63 - 1),
    batches=st.lists(st.integers(1, 400), max_size=40),
)
def test_the_closed_form_agrees_with_writing_one_by_one(
    kind: Kind, pages: int, seed: int, batches: list[int]
) -> None:
    workload = Workload(kind, pages, seed)
    everything = np.arange(pages, dtype=np.uint64)
    held = np.zeros(pages, np.uint64)
    done = 0
    for count in batches:
        pfns, writes = workload.targets(done, count)
        assert len(np.unique(pfns)) == len(pfns) <= count
        assert (writes == held[pfns] + np.uint64(1)).all()
        held[pfns] = writes
        done += len(pfns)
        assert (workload.writes_of(everything, done) == held).all()


def test_a_random_workload_comes_to_its_hot_set_and_no_more() -> None:
    workload = Workload(Kind.RANDOM, 65_536, 7)
    seen: set[int] = set()
    done = 0
    while done < 3 * workload.set_size:
        pfns, _ = workload.targets(done, 512)
        seen.update(pfns.tolist())
        done += len(pfns)
    assert len(seen) == 65_536 // 8
    assert max(seen) > 60_000, "the hot set is spread over memory"


def test_a_big_guest_stays_within_64_bits() -> None:
    workload = Workload(Kind.RANDOM, 1 << 28, 2**63 - 1)
    pfns, writes = workload.targets((1 << 25) * 5 + 1000, 100)
    assert (workload.writes_of(pfns, (1 << 25) * 5 + 1000) == writes - np.uint64(1)).all()
    assert (workload.writes_of(pfns, (1 << 25) * 5 + 1100) == writes).all()


PFNS = np.arange(8, dtype=np.uint64)
WRITES = np.arange(10, 18, dtype=np.uint64)


@pytest.fixture
def memory() -> pattern.Words:
    words = np.zeros((8, pattern.WORDS_PER_PAGE), np.uint64)
    pattern.write(words, 3, PFNS, WRITES)
    assert pattern.first_wrong(words, 3, PFNS, WRITES) is None
    return words


@given(octet=st.integers(0, 8 * 4096 - 1), bit=st.integers(0, 7))
def test_one_flipped_bit_shows(octet: int, bit: int) -> None:
    words = np.zeros((8, pattern.WORDS_PER_PAGE), np.uint64)
    pattern.write(words, 3, PFNS, WRITES)
    words.view(np.uint8).reshape(-1)[octet] ^= 1 << bit
    assert pattern.first_wrong(words, 3, PFNS, WRITES) == octet // 4096


def test_a_torn_page_shows_and_is_described(memory: pattern.Words) -> None:
    pattern.write(memory, 3, PFNS, WRITES + np.uint64(1))
    old = np.zeros_like(memory)
    pattern.write(old, 3, PFNS, WRITES)
    memory[5, 100:] = old[5, 100:]
    assert pattern.first_wrong(memory, 3, PFNS, WRITES + np.uint64(1)) == 5
    described = pattern.describe(memory[5], 3, 5, 16)
    assert "write 15 in 412 of 512 words" in described
    assert "write 16 in 100 of 512 words" in described


def test_a_misplaced_page_shows(memory: pattern.Words) -> None:
    memory[[2, 3]] = memory[[3, 2]]
    assert pattern.first_wrong(memory, 3, PFNS, WRITES) == 2
    assert "foreign data" in pattern.describe(memory[2], 3, 2, 12)


def test_scattered_pages_are_compared_as_runs_are(memory: pattern.Words) -> None:
    some = np.array([6, 1, 3], np.uint64)
    assert pattern.first_wrong(memory, 3, some, WRITES[some]) is None
    memory[3, 511] ^= np.uint64(1)
    assert pattern.first_wrong(memory, 3, some, WRITES[some]) == 2


def test_words_that_are_another_writers_are_spared(memory: pattern.Words) -> None:
    memory[3, 8:16] = 0
    assert pattern.first_wrong(memory, 3, PFNS, WRITES, (3, slice(8, 16))) is None
    for spared in ((2, slice(8, 16)), (3, slice(8, 15)), (-1, slice(8, 16))):
        assert pattern.first_wrong(memory, 3, PFNS, WRITES, spared) == 3


def registers() -> Registers:
    return Registers(
        Kind.RANDOM, 2**63 - 1, 20_000.0, 65_536, 65_000, 123_456, 99, 777, 5, b"t" * 16, 16_384, 84
    )


def test_registers_come_back_from_their_context() -> None:
    assert Registers.decode(registers().encode()) == registers()


@given(octet=st.integers(0, len(registers().encode()) - 5), bit=st.integers(0, 7))
def test_a_damaged_context_is_refused(octet: int, bit: int) -> None:
    context = bytearray(registers().encode())
    context[octet] ^= 1 << bit
    with pytest.raises(ForeignContextError):
        Registers.decode(bytes(context))
