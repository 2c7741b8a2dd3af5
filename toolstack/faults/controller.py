"""The controller's part of a plan at work in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.plan import Plan
from xen_save_helper.ipc_schema.faults.points import SIDES, Kind, Who
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.faults.handshake import HandshakeFaults
from xen_save_helper.toolstack.faults.records import RecordSeam
from xen_save_helper.toolstack.seams import Seams

if TYPE_CHECKING:
    from xen_save_helper.toolstack.faults.zmq_controller import FaultyZmqController
    from xen_save_helper.toolstack.helpers.channel import ChannelListener


class ControllerFaults(Seams):
    """The faults of a plan at the controller's seams. The side is known once an operation
    begins."""

    def __init__(self, plan: Plan, trace: Trace) -> None:
        """`plan` has a seed. Raises PlanError for faults that neither we nor a helper carry out."""
        self._striker = Striker(plan, Who.CONTROLLER, trace=trace)
        self.stream = RecordSeam(self._striker)
        self.handshake = HandshakeFaults(self._striker)

    @property
    def idle(self) -> bool:
        """Whether the plan has no faults for a controller."""
        return not self._striker.faults

    @property
    def of_messages(self) -> list[str]:
        """The faults at messages, which only our own helper's channel has."""
        faults = self._striker.faults
        return [str(fault) for fault in faults if fault.point.kind is Kind.MESSAGE]

    def begin(self, operation: Operation) -> None:
        self._striker.side = SIDES[operation]

    def open_zmq(
        self, operation: Operation, provided: frozenset[str], listener: ChannelListener
    ) -> FaultyZmqController:
        from xen_save_helper.toolstack.faults.zmq_controller import FaultyZmqController

        return FaultyZmqController(self._striker, operation, provided, listener)
