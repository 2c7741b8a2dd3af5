"""Faults that a simulated guest carries out when it is asked to suspend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.ipc_schema.faults import actions as fault_actions
from xen_save_helper.ipc_schema.faults.plan import Plan
from xen_save_helper.ipc_schema.faults.points import Who
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

_BEHAVIOURS: Final[Mapping[str, Behaviour]] = {
    fault_actions.REFUSE.name: Behaviour.REFUSE,
    fault_actions.LATE.name: Behaviour.LATE,
    fault_actions.CRASH.name: Behaviour.DIE,
}


def arm(host: SimulatedHost, domid: int, plan: Plan) -> None:
    """Have the guest carry out its faults; the last one wins, since a guest behaves in one way."""
    for fault in plan.drawn(Who.GUEST):
        seconds = float(fault.action.value or 0)
        host.set_behaviour(domid, _BEHAVIOURS[fault.action.kind.name], seconds)
