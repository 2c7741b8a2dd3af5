"""Sparse streams, on a Xen whose free memory holds what another guest has left there."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import run, wait_until
from tests.xen.dom0.donor import LEFTOVER, Donor
from tests.xen.scenarios.postcopy import contents
from tests.xen.scenarios.scenario import BOTH, NONE, Scenario
from tests.xen.scenarios.toolstack import PATIENCE, RECEIVE, done_by, nothing_is_left, succeeds
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.helper.hypervisors.xen.domain import XenDomain

if TYPE_CHECKING:
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab

_MORE_MIB: Final = 64
"""What the donor has beyond the guest, for what Xen itself takes for a domain."""
_ZERO: Final = bytes(PAGE_SIZE)


def over_leftovers(lab: Lab, kind: str) -> None:
    """A guest is saved without its pages of zeros. It is restored into memory that a guest which
    lives has given back: the first differs from what was saved in no page. Then it migrates, into
    such memory again, and counts on."""
    guest = lab.guest(kind)
    file = lab.directory / "saved"
    with done_by(lab, 1) as trace:
        succeeds("save", guest.name, file, "--sparse", "--paused", *trace, *PATIENCE)
    before = _memory(lab, guest)
    zeros = sum(page == _ZERO for page in before.values())
    rest = 1 - zeros / len(before)
    lab.figure("pages of zeros, %", round(100 * (1 - rest)))
    lab.figure("file, % of memory", round(100 * file.stat().st_size / guest.octets))
    assert file.stat().st_size < guest.octets - zeros * PAGE_SIZE / 2
    assert lab.xl(["destroy", guest.name]).status == 0
    wait_until("the saved guest is gone", lambda: not lab.domains(), 60)

    donor = Donor("donor", guest.memory + _MORE_MIB)
    _leave(lab, donor, rest, "before the restore")
    with done_by(lab, 1) as trace:
        succeeds("restore", file, "--paused", *trace, *PATIENCE)
    after = _memory(lab, guest)
    differ = [pfn for pfn, page in before.items() if after.get(pfn) != page]
    leftovers = [pfn for pfn, page in after.items() if LEFTOVER in page]
    assert not differ, (
        f"{len(differ)} pages differ, and {len(leftovers)} hold leftovers: {differ[:10]}"
    )
    run(["xl", "unpause", guest.name])
    guest.goes_on()

    domid = lab.domid(guest)
    _leave(lab, donor, rest, "before the migration")
    with done_by(lab, 2) as trace:
        succeeds("migrate", guest.name, "--to", RECEIVE, "--sparse", *trace, *PATIENCE)
    wait_until("only they live", lambda: set(lab.domains()) == {guest.name, donor.name}, 60)
    assert lab.domid(guest) != domid
    guest.goes_on(seconds=8)
    nothing_is_left()


def _leave(lab: Lab, donor: Donor, rest: float, when: str) -> None:
    """Leave leftovers in more of the memory that Xen gives out next than the share `rest`, which
    the guest's other pages take: so there are some where pages of zeros belong."""
    donor.give_back()
    share = donor.leftovers()
    lab.figure(f"leftovers {when}, %", round(100 * share))
    assert share > rest


def _memory(lab: Lab, guest: Guest) -> dict[int, bytes]:
    with closing(XenDomain(lab.domid(guest))) as domain:
        return contents(domain, set())


SCENARIOS: Final = (
    Scenario(
        "toolstack-sparse-over-leftovers-pvh",
        partial(over_leftovers, kind="pvh"),
        NONE,
        BOTH,
    ),
)
