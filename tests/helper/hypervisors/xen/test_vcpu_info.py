"""Which pages are taken for those with a struct vcpu_info."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen_structs import SCALE, vcpu_info
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.helper.hypervisors.xen.vcpu_info import Scale, pages_with, scale_of


def memory(pages: int, infos: dict[int, bytes]) -> memoryview:
    """Random pages, with what is in `infos` by its offset."""
    octets = bytearray(random.Random(pages).randbytes(pages * PAGE_SIZE))
    for offset, data in infos.items():
        octets[offset : offset + len(data)] = data
    return memoryview(octets)


@given(st.integers(1_000, 10_000_000), st.integers(0, 2**40))
def test_a_scale_turns_ticks_into_nanoseconds(khz: int, ticks: int) -> None:
    scale = scale_of(khz)
    shifted = ticks << scale.shift if scale.shift >= 0 else ticks >> -scale.shift
    nanoseconds = shifted * scale.mul >> 32
    assert nanoseconds == pytest.approx(ticks * 1_000_000 / khz, rel=1e-4, abs=2000)
    assert 1 << 31 <= scale.mul < 1 << 32


@pytest.mark.parametrize(("khz", "shift"), [(2_000_000, 0), (4_000_000, -1), (1_000_000, 1)])
def test_scales_by_hand(khz: int, shift: int) -> None:
    assert scale_of(khz) == Scale(1 << 31, shift)


def test_pages_are_found_each_once() -> None:
    infos = {
        PAGE_SIZE + 64: vcpu_info(),
        5 * PAGE_SIZE: vcpu_info(mask=0),
        5 * PAGE_SIZE + 128: vcpu_info(),
    }
    assert list(pages_with(memory(8, infos), SCALE)) == [1, 5]


@given(st.integers(-(SCALE.mul >> 11), SCALE.mul >> 11))
def test_xen_has_measured_the_frequency_more_exactly_than_it_tells(off: int) -> None:
    near = vcpu_info(Scale(SCALE.mul + off, SCALE.shift))
    assert list(pages_with(memory(2, {PAGE_SIZE: near}), SCALE)) == [1]


@pytest.mark.parametrize(
    "other",
    [
        vcpu_info(Scale(SCALE.mul // 2, SCALE.shift)),
        vcpu_info(Scale(SCALE.mul, SCALE.shift - 1)),
        vcpu_info(pending=2),
        vcpu_info(mask=7),
        vcpu_info(version=0),
        vcpu_info(flags=0x10),
        bytes(64),
        b"\xff" * 64,
    ],
)
def test_others_are_not(other: bytes) -> None:
    assert list(pages_with(memory(2, {PAGE_SIZE: other}), SCALE)) == []
