"""A guest that was offered CPU features which this host lacks: the emulated CPU has no `xsave` and
`pku`, and the policy in a saved guest is changed so that it offers them."""

from __future__ import annotations

import errno
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import run
from tests.xen.dom0.lab import COMMAND_SECONDS
from tests.xen.scenarios.scenario import BOOKWORM, NONE, TRIXIE, Scenario
from tests.xen.scenarios.toolstack import PATIENCE
from xen_save_helper.ipc_schema.streams.cpu_features import features
from xen_save_helper.ipc_schema.streams.static_data import Policy, policy_of

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

CLAIMED: Final = ("xsave", "pku")
_ECX: Final = 4
_BITS: Final = {0x1: 26, 0x7: 3}
"""The features' bits, by leaf, in ecx of subleaf 0."""

_LEAF: Final = struct.Struct("<6I")
_NO_SUBLEAF: Final = 0xFFFFFFFF
_FRONT: Final = 1 << 16
"""Bytes of a saved guest that include its policy."""

_REFUSED: Final = "this host lacks CPU features that the guest was offered: xsave, pku. "
_IGNORED: Final = "this host lacks CPU features that the guest was offered: xsave, pku; "


def policy_in(file: Path) -> tuple[int, bytes]:
    """The place of the leaves in a saved guest, and the leaves themselves."""
    with open(file, "rb") as saved:
        front = saved.read(_FRONT)
    start = front.index(b"\xff" * 8 + b"XENF")
    policy = policy_of(front[start:])
    assert isinstance(policy, Policy), policy
    return front.index(policy.cpuid, start), policy.cpuid


def with_claims(leaves: bytes) -> bytes:
    """The policy with CLAIMED added to what it offers."""
    claiming = []
    for values in map(list, _LEAF.iter_unpack(leaves)):
        if values[0] in _BITS and values[1] in (0, _NO_SUBLEAF):
            values[_ECX] |= 1 << _BITS[values[0]]
        claiming.append(_LEAF.pack(*values))
    return b"".join(claiming)


def claim(file: Path) -> None:
    """Change the policy in a saved guest so that it also offers CLAIMED. The guest itself was not
    offered that, so this host's CPU must lack it."""
    place, true = policy_in(file)
    assert not set(CLAIMED) & set(features(true)), "the emulated CPU has them"
    claiming = with_claims(true)
    assert set(features(claiming)) - set(features(true)) == set(CLAIMED)
    with open(file, "r+b") as saved:
        saved.seek(place)
        saved.write(claiming)


def by_xl(lab: Lab, kind: str) -> None:
    """The guest is refused by name before its first page, unless the setting ignores the
    difference: then Xen hides what the CPU lacks, and the guest, which uses none of it, goes on.
    Features that the guest was truly offered cause no message."""
    guest = lab.guest(kind)
    file = lab.directory / "saved"
    lab.save(guest, file)
    claim(file)
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
    assert not set(CLAIMED) & set(features(policy_in(file)[1])), "Xen has not hidden them"
    lab.restore(guest, file)


def by_our_controller(lab: Lab) -> None:
    """`xen-toolstack restore` tells it in its one line, whatever the drop-in's variable says, and
    passes its own setting on to the `xl` that it starts."""
    guest = lab.guest("pvh")
    file = lab.directory / "saved"
    lab.save(guest, file)
    claim(file)
    restore = ("xen-toolstack", "restore", file, *PATIENCE)
    variable = {"XEN_SAVE_HELPER_MISSING_CPU_FEATURES": "ignore"}
    refused = run(restore, COMMAND_SECONDS, variable)
    assert refused.status == 1
    (line,) = refused.output.splitlines()
    assert line.startswith("xen-toolstack: ")
    assert _REFUSED in line
    assert not lab.domains()
    ignored = run([*restore, "--missing-cpu-features", "ignore", "-v"], COMMAND_SECONDS)
    assert ignored.status == 0
    assert _IGNORED in ignored.output
    lab.assert_only(guest)
    guest.goes_on()


SCENARIOS: Final = (
    Scenario("xl-restore-cpu-policy-pvh", partial(by_xl, kind="pvh"), BOOKWORM, TRIXIE),
    Scenario("xl-restore-cpu-policy-pv", partial(by_xl, kind="pv"), NONE, BOOKWORM),
    Scenario("toolstack-restore-cpu-policy-pvh", by_our_controller, NONE, BOOKWORM),
)
