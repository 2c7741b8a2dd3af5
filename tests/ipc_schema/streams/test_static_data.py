from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.streams import CUTS, read_cut
from tests.streams.known import KNOWN
from xen_save_helper.ipc_schema.streams.libxc_bodies import PvInfo
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.libxc_records import encode_body
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DomainHeader,
    DomainType,
    ImageHeader,
    encode_domain_header,
    encode_image_header,
)
from xen_save_helper.ipc_schema.streams.records import encode_record
from xen_save_helper.ipc_schema.streams.static_data import Absent, Policy, policy_of

LEAVES = bytes(range(48))


def head(version: int = VERSION, kind: DomainType = DomainType.X86_HVM) -> bytes:
    return encode_image_header(ImageHeader(version)) + encode_domain_header(
        DomainHeader(type=kind, xen_major=4, xen_minor=17)
    )


def record(kind: RecordType, body: bytes = b"") -> bytes:
    return encode_record(record_number(kind, VERSION), body)


CPUID = record(RecordType.X86_CPUID_POLICY, LEAVES)
MSR = record(RecordType.X86_MSR_POLICY, bytes(16))
PV_INFO = record(RecordType.X86_PV_INFO, encode_body(RecordType.X86_PV_INFO, PvInfo(8, 4)))
OPTIONAL = encode_record(0x80001234, b"odd")


@pytest.mark.parametrize("name", CUTS)
def test_of_a_real_stream(name: str) -> None:
    cut = read_cut(name)
    stream = cut[cut.index(b"\xff" * 8 + b"XENF") :]
    found = policy_of(stream)
    assert isinstance(found, Policy)
    assert found.hvm == (KNOWN[name].guest != "pv")
    end = stream.index(found.cpuid) + len(found.cpuid)
    assert {policy_of(stream[:length]) for length in range(end)} == {Absent.YET}
    assert policy_of(stream[:end]) == found


@pytest.mark.parametrize("before", [b"", MSR, OPTIONAL, MSR + OPTIONAL])
def test_wherever_it_stands_in_the_static_data(before: bytes) -> None:
    assert policy_of(head() + before + CPUID) == Policy(hvm=True, cpuid=LEAVES)
    pv = head(kind=DomainType.X86_PV) + PV_INFO + before + CPUID
    assert policy_of(pv) == Policy(hvm=False, cpuid=LEAVES)


@pytest.mark.parametrize(
    "front",
    [
        b"the stream",
        b"\xff" * 7 + b"x",
        head(version=2) + CPUID,
        head() + MSR + record(RecordType.STATIC_DATA_END),
        head() + record(RecordType.END),
        head() + encode_record(0x1234, b""),
        head() + record(RecordType.X86_CPUID_POLICY, LEAVES[:-1]),
        head().replace(b"XENF", b"XENG") + CPUID,
    ],
)
def test_where_there_is_none(front: bytes) -> None:
    assert policy_of(front) is Absent.ALTOGETHER


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=200))
def test_whatever_comes(damage: bytes, front: bytes, rest: bytes) -> None:
    policy_of(front)
    policy_of(head() + damage)
    first, more = policy_of(head() + rest[:100]), policy_of(head() + rest)
    assert first in (Absent.YET, more)
