"""The log-dirty bitmap, from a hypercall's bits to an octet for each page."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.hypervisors.xen.domain import unpack

PART = 4096
"""Octets of bits that are unpacked at once."""


@given(
    st.integers(1, 3 * 8 * PART),
    st.lists(st.integers(0, 3 * 8 * PART - 1), max_size=30),
)
def test_each_bit_has_its_octet(pages: int, dirty: list[int]) -> None:
    expected = {pfn for pfn in dirty if pfn < pages}
    bits = sum(1 << pfn for pfn in expected).to_bytes(-(-pages // 8), "little")
    bitmap = bytearray(b"\7" * pages)
    unpack(bits, bitmap)
    assert {pfn for pfn, there in enumerate(bitmap) if there} == expected
    assert set(bitmap) <= {0, 1}
    assert len(bitmap) == pages


@pytest.mark.parametrize("octet", [0x00, 0x01, 0x80, 0xFF])
def test_all_octets_alike(octet: int) -> None:
    bitmap = bytearray(8 * PART + 8)
    unpack(bytes([octet]) * (PART + 1), bitmap)
    assert bitmap == bytes(octet >> bit & 1 for bit in range(8)) * (PART + 1)
