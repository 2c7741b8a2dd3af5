"""A request to suspend that is under way (libxl_dom_suspend.c).

| the domain                           | is asked through                | has acknowledged      |
|--------------------------------------|---------------------------------|-----------------------|
| in S0, device/suspend/event-channel  | that event channel              | when it has suspended |
| HVM, without PV drivers or not in S0 | xc_domain_shutdown: not at all  | at once               |
| any other                            | control/shutdown                | when it changes that  |
| is suspended already                 | not at all                      | at once               |

S0 is HVM_PARAM_ACPI_S_STATE 0; PV drivers are there where HVM_PARAM_CALLBACK_IRQ is set. In all
ways @releaseDomain tells that the domain has suspended (or crashed); libxl waits for an event
on the channel instead, for which it has to subscribe.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import Final

from xen_save_helper.helper.hypervisors.interface import ShutdownReason
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl
from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore
from xen_save_helper.toolstack.hosts.interface import GuestState, SuspendState
from xen_save_helper.toolstack.hosts.xen.domain import HVM, PV, home, state_of, type_of
from xen_save_helper.toolstack.hosts.xen.event_channel import EventChannel

HVM_PARAM_CALLBACK_IRQ: Final = 0
HVM_PARAM_ACPI_S_STATE: Final = 14

REQUEST: Final = b"suspend"


class Way(Enum):
    """How a domain is asked."""

    EVENT_CHANNEL = "event channel"
    SHUTDOWN = "xc_domain_shutdown"
    CONTROL_NODE = "control/shutdown"
    NOT_NEEDED = "suspended already"


def way_for(kind: str, *, has_channel: bool, pv_drivers: bool, s_state: int) -> Way:
    """The table above for a domain that is not suspended; `kind` is its type."""
    if has_channel and not s_state:
        return Way.EVENT_CHANNEL
    if kind == HVM and (s_state or not pv_drivers):
        return Way.SHUTDOWN
    return Way.CONTROL_NODE


def control_node(domid: int) -> str:
    """libxl__domain_pvcontrol_xspath."""
    return f"{home(domid)}/control/shutdown"


def withdraw_request(xenstore: Xenstore, domid: int) -> bool:
    """Empty the control node if a request to suspend stands in it. False where none does: the guest
    has acknowledged it, or it was never made. In a transaction: the guest may be at it right now.
    """
    node = control_node(domid)

    def withdraw(transaction: int) -> bool:
        if xenstore.read(node, transaction) != REQUEST:
            return False
        xenstore.write(node, b"", transaction)
        return True

    return xenstore.transact(withdraw)


class XenSuspendRequest:
    """interface.SuspendRequest. Its descriptor is a connection to xenstored, with its watches.

    Raises ProcessLookupError where there is no such domain, OSError where it cannot be asked.
    """

    def __init__(self, domid: int) -> None:
        self._domid = domid
        self._channel: EventChannel | None = None
        self._xenctrl = Xenctrl()
        try:
            self._xenstore = Xenstore()
        except BaseException:
            self._xenctrl.close()
            raise
        try:
            self._way = self._ask()
        except BaseException:
            self.close()
            raise

    def _ask(self) -> Way:
        domid, xenctrl, xenstore = self._domid, self._xenctrl, self._xenstore
        info = xenctrl.domain_getinfo(domid)
        if state_of(info) is GuestState.SUSPENDED:
            return Way.NOT_NEEDED
        kind = type_of(xenstore, info)
        port = xenstore.text(f"{home(domid)}/device/suspend/event-channel")
        way = way_for(
            kind,
            has_channel=bool(port),
            pv_drivers=bool(self._hvm_param(kind, HVM_PARAM_CALLBACK_IRQ)),
            s_state=self._hvm_param(kind, HVM_PARAM_ACPI_S_STATE),
        )
        # First to listen, then to ask.
        xenstore.watch("@releaseDomain", "release")
        match way:
            case Way.EVENT_CHANNEL:
                self._channel = EventChannel(domid, _port(port))
                self._channel.notify()
            case Way.SHUTDOWN:
                xenctrl.domain_shutdown(domid, ShutdownReason.SUSPEND)
            case Way.CONTROL_NODE:
                xenstore.watch(control_node(domid), "control")
                xenstore.write(control_node(domid), REQUEST)
        return way

    def _hvm_param(self, kind: str, index: int) -> int:
        return 0 if kind == PV else self._xenctrl.hvm_param_get(self._domid, index)

    def fileno(self) -> int:
        return self._xenstore.fileno()

    def state(self) -> SuspendState:
        """Asks xenstored, within its time limit, and the hypervisor.

        In this order: a watch that fires while xenstored is asked is taken off the descriptor, and
        what it tells of must be seen here.
        """
        while True:
            self._xenstore.take_events()
            heard = self._heard()
            state = self._guest_state()
            if not self._xenstore.take_events():
                break
        match state:
            case GuestState.SUSPENDED:
                return SuspendState.SUSPENDED
            case GuestState.RUNNING | GuestState.PAUSED:
                return SuspendState.ACKNOWLEDGED if heard else SuspendState.REQUESTED
            case _:
                return SuspendState.CRASHED

    def _heard(self) -> bool:
        """domain_suspend_pvcontrol_acked: anything but the request, nothing among it."""
        match self._way:
            case Way.EVENT_CHANNEL:
                return False
            case Way.SHUTDOWN | Way.NOT_NEEDED:
                return True
            case Way.CONTROL_NODE:
                return self._xenstore.read(control_node(self._domid)) != REQUEST

    def _guest_state(self) -> GuestState | None:
        """None where the domain is gone, or about to be."""
        try:
            info = self._xenctrl.domain_getinfo(self._domid)
        except ProcessLookupError:
            return None
        return None if info.dying else state_of(info)

    def withdraw(self) -> bool:
        """What the hypervisor does, and an event that was sent, cannot be taken back."""
        if self._guest_state() is None:
            return True
        return self._way is Way.CONTROL_NODE and withdraw_request(self._xenstore, self._domid)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._xenstore.close()
        self._xenctrl.close()


def _port(text: str | None) -> int:
    if text is None or not text.isdecimal():
        raise OSError(errno.EPROTO, f"device/suspend/event-channel holds {text!r}, no port")
    return int(text)
