"""Only what is certain is refused: xl can take memory from the control domain."""

from __future__ import annotations

from typing import Any

import pytest

from xen_save_helper.toolstack.hosts.xen.memory import needed_kib, why_no_room

GIB = 1 << 20
"""In KiB."""


@pytest.mark.parametrize(
    ("b_info", "needed"),
    [
        ({"max_memkb": 4096, "target_memkb": 2048}, 2048),
        ({"max_memkb": 4096}, 4096),
        ({"max_memkb": 4096, "target_memkb": -1}, 4096),
        ({}, 0),
        ({"max_memkb": "4096"}, 0),
        ([], 0),
        (None, 0),
    ],
)
def test_the_least_that_a_guest_takes(b_info: Any, needed: int) -> None:
    assert needed_kib({"b_info": b_info}) == needed


def test_the_control_domains_memory_may_be_taken() -> None:
    assert why_no_room(12 * GIB, 16 * GIB, 4 * GIB) == ""
    assert why_no_room(0, 16 * GIB, 16 * GIB) == ""


def test_other_guests_memory_may_not_be_taken() -> None:
    told = why_no_room(13 * GIB, 16 * GIB, 4 * GIB)
    assert told == (
        "there is no room for 13312 MiB: of this host's 16384 MiB, other guests have 4096 MiB"
    )
