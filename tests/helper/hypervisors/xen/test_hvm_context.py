"""Which pages an HVM context names."""

from __future__ import annotations

import errno
import struct

import pytest

from tests.xen_structs import context, cpu, record, viridian_domain, viridian_vcpu
from xen_save_helper.helper.hypervisors.xen.hvm_context import needed


def found(*records: bytes) -> dict[str, list[int]]:
    return {what: pfns.tolist() for what, pfns in needed(context(*records)).items()}


def test_the_roots_of_page_tables_are_found_each_once() -> None:
    cpus = cpu(0, cr3=0x1234_5000), cpu(1, cr3=0x8000), cpu(2, cr3=0x1234_5000)
    assert found(*cpus) == {"cr3": [0x8, 0x12345]}


def test_a_vcpu_without_paging_has_none() -> None:
    assert found(cpu(0, cr0=0x11, cr3=0x5000)) == {}


@pytest.mark.parametrize("cr3", [0x5FE0, 0x5018, 0x5FFF, (1 << 63) | 0x5001])
def test_a_pae_root_a_pcid_and_flags_are_not_of_the_page(cr3: int) -> None:
    assert found(cpu(0, cr3=cr3)) == {"cr3": [5]}


def test_viridian_pages_are_those_that_are_enabled() -> None:
    vcpus = (
        viridian_vcpu(0, vp_assist=0x7001, simp=0x9000),
        viridian_vcpu(1, vp_assist=0x8000, simp=0xA001),
    )
    assert found(viridian_domain(0x6001), *vcpus) == {"viridian": [0x6, 0x7, 0xA]}
    assert found(viridian_domain(0x6000)) == {}


def test_a_record_of_an_older_release_is_shorter() -> None:
    assert found(record(17, 0, struct.pack("<QQ", 0x7001, 0))) == {"viridian": [7]}


@pytest.mark.parametrize("length", [0, 7, 40, 1072, 1079])
def test_a_context_that_is_cut_off(length: int) -> None:
    with pytest.raises(OSError, match="has no end") as caught:
        needed(context(cpu(0, cr3=0x5000))[:length])
    assert caught.value.errno == errno.EINVAL
