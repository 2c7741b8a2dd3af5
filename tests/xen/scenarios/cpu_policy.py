"""A guest that was offered CPU features which this host lacks: the emulated CPU is made without
`xsave` and `pku`, and the policy in a saved guest is made to offer them."""

from __future__ import annotations

import errno
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ipc_schema.cpu_features import features
from ipc_schema.static_data import Policy, policy_of
from tests.xen.dom0.lab import COMMAND_SECONDS
from tests.xen.scenarios.scenario import BOTH, Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

CLAIMED: Final = ("xsave", "pku")
_ECX: Final = 4
_BITS: Final = {0x1: 26, 0x7: 3}
"""By leaf, in ecx of subleaf 0: where these two stand."""

_LEAF: Final = struct.Struct("<6I")
_NO_SUBLEAF: Final = 0xFFFFFFFF
_FRONT: Final = 1 << 16
"""Octets of a saved guest; its policy is among them."""

_REFUSED: Final = "this host lacks CPU features that the guest was offered: xsave, pku. "
_IGNORED: Final = "this host lacks CPU features that the guest was offered: xsave, pku; "


def policy_in(file: Path) -> tuple[int, bytes]:
    """Where the leaves stand in a saved guest, and they themselves."""
    with open(file, "rb") as saved:
        front = saved.read(_FRONT)
    start = front.index(b"\xff" * 8 + b"XENF")
    policy = policy_of(front[start:])
    assert isinstance(policy, Policy), policy
    return front.index(policy.cpuid, start), policy.cpuid


def with_claims(leaves: bytes) -> bytes:
    """The policy that offers CLAIMED, too."""
    claiming = []
    for values in map(list, _LEAF.iter_unpack(leaves)):
        if values[0] in _BITS and values[1] in (0, _NO_SUBLEAF):
            values[_ECX] |= 1 << _BITS[values[0]]
        claiming.append(_LEAF.pack(*values))
    return b"".join(claiming)


def offered_too_much(lab: Lab) -> None:
    """Refused by name before the first page, unless that is to be ignored: Xen hides then what is
    not there, and the guest, which uses none of it, goes on. What it was truly offered is no
    reason for a word."""
    guest = lab.guest("pvh")
    file = lab.directory / "saved"
    lab.save(guest, file)
    place, true = policy_in(file)
    assert not set(CLAIMED) & set(features(true)), "the emulated CPU has them"
    claiming = with_claims(true)
    assert set(features(claiming)) - set(features(true)) == set(CLAIMED)
    with open(file, "r+b") as saved:
        saved.seek(place)
        saved.write(claiming)

    before = len(lab.events())
    refused = lab.xl(["restore", file], limit=COMMAND_SECONDS)
    assert refused.status != 0
    assert refused.output.count(_REFUSED) == 1, refused.output
    assert not lab.domains()
    traced = lab.events()[before:]
    assert [e["errnoval"] for e in traced if e["event"] == "complete"] == [errno.ENOTSUP]
    called = {e.get("name") for e in traced if e["event"] == "callback"}
    assert "static_data_done" not in called, "libxc had begun with it"

    ignore = {"XEN_SAVE_HELPER_MISSING_CPU_FEATURES": "ignore"}
    ignored = lab.xl(["restore", file], env=ignore, limit=COMMAND_SECONDS)
    assert ignored.status == 0
    assert ignored.output.count(_IGNORED) == 1, ignored.output
    guest.goes_on()

    lab.save(guest, file)
    assert not set(CLAIMED) & set(features(policy_in(file)[1])), "Xen has hidden them"
    lab.restore(guest, file)


SCENARIOS: Final = (Scenario("xl-restore-cpu-policy-pvh", offered_too_much, BOTH),)
