from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.streams.cpu_features import all_but, features, missing, without

NO_SUBLEAF = 0xFFFFFFFF

XSAVE, OSXSAVE, SSE3 = 1 << 26, 1 << 27, 1
PKU, OSPKE = 1 << 3, 1 << 4


def policy(*leaves: tuple[int, int, int, int, int, int]) -> bytes:
    """xen_cpuid_leaf_t of each: leaf, subleaf, eax, ebx, ecx, edx."""
    return b"".join(struct.pack("<6I", *leaf) for leaf in leaves)


def test_features_are_named_as_xen_names_them() -> None:
    leaves = policy(
        (0x0, NO_SUBLEAF, 0xD, 0x68747541, 0x444D4163, 0x69746E65),
        (0x1, NO_SUBLEAF, 0x000306F2, 0x00010800, SSE3 | XSAVE | OSXSAVE, 1 | 1 << 4),
        (0x7, 0, 2, 1 << 5, PKU | OSPKE, 1 << 29),
        (0x7, 1, 1 << 4, 0, 0, 0),
        (0xD, 0, 7, 0x340, 0x340, 0),
        (0xD, 1, 1, 0, 0, 0),
        (0x80000001, NO_SUBLEAF, 0, 0, 1, 1 << 29),
        (0x80000008, NO_SUBLEAF, 0x3030, 1 << 12, 0, 0),
        (0x80000021, NO_SUBLEAF, 1 << 6, 0, 0, 0),
    )
    assert " ".join(features(leaves)) == (
        "fpu tsc sse3 xsave osxsave avx2 pku ospke arch-caps avx-vnni xsaveopt lm lahf-lm ibpb nscb"
    )


def test_a_bit_without_a_name_is_given_by_its_place() -> None:
    assert features(policy((0x7, 0, 0, 0, 1 << 15, 0))) == ["cpuid:0x7.0.ecx[15]"]


def test_what_amd_repeats_of_leaf_1_is_named_once() -> None:
    assert features(policy((0x80000001, NO_SUBLEAF, 0, 0, 0, 0x0183F3FF | 1 << 11))) == ["syscall"]


def test_missing_features_are_named() -> None:
    wanted = policy(
        (0x1, NO_SUBLEAF, 0, 0, SSE3 | XSAVE, 1), (0x7, 0, 0, 1 << 5, PKU, 0), (0xD, 1, 1, 0, 0, 0)
    )
    assert missing(wanted, policy((0x1, NO_SUBLEAF, 0, 0, SSE3, 1))) == [
        "xsave",
        "avx2",
        "pku",
        "xsaveopt",
    ]
    assert missing(wanted, wanted) == []


@pytest.mark.parametrize(
    "leaf",
    [
        (0x0, NO_SUBLEAF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0x1, NO_SUBLEAF, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0),  # family and model, APIC id
        (0x1, NO_SUBLEAF, 0, 0, OSXSAVE | 1 << 31 | 1 << 21 | 1 << 3, 1 << 9 | 1 << 28),
        (0x4, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),  # caches
        (0x7, 0, 0xFFFFFFFF, 0, OSPKE, 1 << 10 | 1 << 11 | 1 << 29),  # OSPKE, MD_CLEAR, ARCH_CAPS
        (0xB, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),  # topology
        (0xD, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),  # sizes of the state
        (0x80000001, NO_SUBLEAF, 0, 0, 1 << 1, 0x0183F3FF),
        (0x80000002, NO_SUBLEAF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),  # brand
        (0x80000008, NO_SUBLEAF, 0xFFFFFFFF, 1 << 26 | 1 << 29 | 1 << 20, 0xFFFFFFFF, 0),
        (0x80000021, NO_SUBLEAF, 1 << 5 | 1 << 29 | 1 << 30, 0, 0, 0),
    ],
)
def test_no_alarm_for_what_a_guest_does_not_need(leaf: tuple[int, ...]) -> None:
    assert missing(struct.pack("<6I", *leaf), b"") == []


@given(st.sets(st.sampled_from(features(all_but(())))))
def test_a_cpu_without_some_features(names: set[str]) -> None:
    everything = all_but(())
    assert set(features(everything)) - set(features(all_but(names))) == names
    assert set(missing(everything, all_but(names))) <= names


words = st.integers(0, 2**32 - 1)
leaves = st.sampled_from(
    [(0x1, NO_SUBLEAF), (0x7, 0), (0x7, 1), (0xD, 1), (0x80000001, NO_SUBLEAF)]
)
policies = st.dictionaries(leaves, st.tuples(words, words, words, words)).map(
    lambda drawn: policy(*((*place, *values) for place, values in drawn.items()))
)


@given(policies, policies)
def test_what_is_missing_is_offered_there_and_not_here(wanted: bytes, offered: bytes) -> None:
    lacking = missing(wanted, offered)
    assert set(lacking) <= set(features(wanted))
    assert not set(lacking) & set(features(offered))
    assert missing(wanted, wanted) == []


@given(st.sets(st.sampled_from(features(all_but(())))))
def test_a_policy_without_some_features(names: set[str]) -> None:
    left = without(all_but(()), names)
    assert set(features(left)) == set(features(all_but(()))) - names
    assert without(left, ()) == left
