"""A vCPU by itself, while others change its domain."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from xen_save_helper.helper.hypervisors.simulated.build import fresh_registers
from xen_save_helper.helper.hypervisors.simulated.layout import P2M
from xen_save_helper.helper.hypervisors.simulated.shared import SharedMemory, create_areas
from xen_save_helper.helper.hypervisors.simulated.vcpu import VCPU, Crash

PAGES = 64
OUT = 5


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    made = SharedMemory(create_areas(PAGES))
    yield made
    os.close(made.memory_fd)


@pytest.fixture
def vcpu(shared: SharedMemory) -> VCPU:
    """A running vCPU whose page OUT is paged out."""
    made = VCPU(shared)
    made.registers = fresh_registers({"workload": "idle", "rate": None, "seed": 7, "pages": PAGES})
    made.fill(made.registers, 0, PAGES)
    shared.p2m[OUT] = P2M.PAGED_OUT
    return made


def test_a_page_that_nobody_brings_is_the_end(vcpu: VCPU) -> None:
    with pytest.raises(Crash, match="pfn 0x5 is paged out, and nobody serves paging"):
        vcpu.check(np.arange(PAGES, dtype=np.uint64))


def test_the_last_page_comes_and_the_pager_goes_while_it_looks(
    vcpu: VCPU, shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Domain:
        """A domain page whose pager has ended, having loaded the page just before."""

        pages_checked = 0

        @property
        def paging(self) -> int:
            shared.p2m[OUT] = P2M.POPULATED
            return 0

    monkeypatch.setattr(vcpu, "_domain", Domain())
    vcpu.check(np.arange(PAGES, dtype=np.uint64))
