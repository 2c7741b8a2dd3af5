"""Many postcopies in a row of one guest: of one vCPU or four, with half, nearly all or all of its
memory left behind. A guest that is lost in one of twenty is seen here.

The guests run dom0's kernel, so the suite decides which Linux it is: bookworm's is 6.1, trixie's
6.12.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.guest import Guest
from tests.xen.dom0.lab import COMMAND_SECONDS
from tests.xen.scenarios.postcopy import BY_POSTCOPY, PAGES_SECONDS, left_by
from tests.xen.scenarios.scenario import BOOKWORM, BOTH, NONE, Scenario
from tests.xen.scenarios.toolstack import PATIENCE, RECEIVE, succeeds
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

_TIMES: Final = 20
_MORE_MIB: Final = 96
"""For four vCPUs that write."""
_WRITTEN_MIB: Final = 16
_ALL: Final = 100
_SHARES: Final = (50, 95, _ALL)
_WEIGHT: Final = 4096
"""Dom0's, beside the 256 of a guest: several vCPUs share one processor."""
_POINTS: Final = 6
"""How far the share left behind may be from the one that was asked for."""


def in_a_row(lab: Lab, kind: str, vcpus: int, share: int | None) -> None:
    """`share` per cent of a guest's memory are left behind, or, if it is None, what the guest wrote
    during one round. An unmodified `xl` migrates it; our controllers do, over a link, if that is
    all memory, which `xl` has no setting for."""
    # The pager is a process of dom0, for whose vCPU those of a guest that wait for it make no room.
    assert lab.xl(["sched-credit2", "-d", "0", "-w", str(_WEIGHT)]).status == 0
    guest = lab.guest(kind, Guest.least_memory(kind) + _MORE_MIB, "", _WRITTEN_MIB, vcpus)
    shares: list[float] = []
    for number in range(1, _TIMES + 1):
        before = lab.domid(guest)
        if share is None:
            assert lab.start_migrate(guest, env=BY_POSTCOPY).end(COMMAND_SECONDS).status == 0
        elif share == _ALL:
            _leave_all(lab, guest)
        else:
            left_by(lab, guest, "postcopy", share, f"gate-{number}")
        # All of them run on one processor, as dom0 does.
        succeeds("postcopy", "wait", "--timeout", str(PAGES_SECONDS * vcpus))
        wait_until("the pager ends", lambda: not lab.running("xen_save_helper.helper"), 60)
        assert lab.assert_only(guest) != before
        guest.goes_on()
        kept = [event["pages"] for event in lab.events("pages_kept")]
        assert len(kept) == number
        shares.append(round(100 * kept[-1] * PAGE_SIZE / guest.octets, 1))
        lab.figure("left behind, %", shares)
        faults = sum(event["faults"] for event in lab.events("postcopy_faults"))
        lab.figure("faults", faults)
        assert share is None or abs(shares[-1] - share) <= _POINTS


def _leave_all(lab: Lab, guest: Guest) -> None:
    options = ("--postcopy", "--link", "127.0.0.1", "--max-rounds", "0", "--json")
    done = succeeds(
        "migrate", guest.name, "--to", RECEIVE, *options, "--events", lab.trace, *PATIENCE
    )
    result = json.loads(done.output[done.output.index("{") : done.output.rindex("}") + 1])
    assert result["outcome"] == "success"


def _scenario(kind: str, vcpus: int, share: int) -> Scenario:
    work = partial(in_a_row, kind=kind, vcpus=vcpus, share=share)
    name = f"postcopy-in-a-row-{kind}-{vcpus}-{share}"
    return Scenario(name, work, NONE, BOTH, shadow=True, limit=3600 * vcpus)


SCENARIOS: Final = (
    Scenario(
        "xl-postcopy-in-a-row-pvh",
        partial(in_a_row, kind="pvh", vcpus=4, share=None),
        NONE,
        BOOKWORM,
        shadow=True,
        limit=3000,
    ),
    *(
        _scenario(kind, vcpus, share)
        for kind in ("pvh", "hvm")
        for vcpus in (1, 4)
        for share in _SHARES
    ),
)
