"""A suspend request in progress (libxl_dom_suspend.c).

| the domain                           | is asked through                | has acknowledged      |
|--------------------------------------|---------------------------------|-----------------------|
| in S0, device/suspend/event-channel  | that event channel              | when it has suspended |
| HVM, without PV drivers or not in S0 | xc_domain_shutdown: not at all  | at once               |
| any other                            | control/shutdown                | when it changes that  |
| already suspended                    | not at all                      | at once               |

S0 means that HVM_PARAM_ACPI_S_STATE is 0; there are PV drivers if HVM_PARAM_CALLBACK_IRQ is set.
Whichever way it was asked, @releaseDomain fires when the domain has suspended (or crashed); libxl
waits for an event on the channel instead, to which it has to subscribe.
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


class RequestMethod(Enum):
    """How a domain is asked to suspend."""

    EVENT_CHANNEL = "event channel"
    SHUTDOWN = "xc_domain_shutdown"
    CONTROL_NODE = "control/shutdown"
    NOT_NEEDED = "already suspended"


def method_for(kind: str, *, has_channel: bool, pv_drivers: bool, s_state: int) -> RequestMethod:
    """The table above, for a domain of type `kind` that is not suspended."""
    if has_channel and not s_state:
        return RequestMethod.EVENT_CHANNEL
    if kind == HVM and (s_state or not pv_drivers):
        return RequestMethod.SHUTDOWN
    return RequestMethod.CONTROL_NODE


def control_node(domid: int) -> str:
    """libxl__domain_pvcontrol_xspath."""
    return f"{home(domid)}/control/shutdown"


def withdraw_request(xenstore: Xenstore, domid: int) -> bool:
    """Empty the control node if it holds a suspend request. Returns False if it does not: the guest
    has acknowledged the request, or it was never made. This takes a transaction, since the guest
    may be acknowledging it right now."""
    node = control_node(domid)

    def withdraw(transaction: int) -> bool:
        if xenstore.read(node, transaction) != REQUEST:
            return False
        xenstore.write(node, b"", transaction)
        return True

    return xenstore.transact(withdraw)


class XenSuspendRequest:
    """interface.SuspendRequest. Its descriptor is a connection to xenstored, with its watches.

    Raises ProcessLookupError if there is no such domain, OSError if it cannot be asked.
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
            self._method = self._ask()
        except BaseException:
            self.close()
            raise

    def _ask(self) -> RequestMethod:
        domid, xenctrl, xenstore = self._domid, self._xenctrl, self._xenstore
        info = xenctrl.domain_getinfo(domid)
        if state_of(info) is GuestState.SUSPENDED:
            return RequestMethod.NOT_NEEDED
        kind = type_of(xenstore, info)
        port = xenstore.text(f"{home(domid)}/device/suspend/event-channel")
        method = method_for(
            kind,
            has_channel=bool(port),
            pv_drivers=bool(self._hvm_param(kind, HVM_PARAM_CALLBACK_IRQ)),
            s_state=self._hvm_param(kind, HVM_PARAM_ACPI_S_STATE),
        )
        # Listen first, then ask.
        xenstore.watch("@releaseDomain", "release")
        match method:
            case RequestMethod.EVENT_CHANNEL:
                self._channel = EventChannel(domid, _port(port))
                self._channel.notify()
            case RequestMethod.SHUTDOWN:
                xenctrl.domain_shutdown(domid, ShutdownReason.SUSPEND)
            case RequestMethod.CONTROL_NODE:
                xenstore.watch(control_node(domid), "control")
                xenstore.write(control_node(domid), REQUEST)
        return method

    def _hvm_param(self, kind: str, index: int) -> int:
        return 0 if kind == PV else self._xenctrl.hvm_param_get(self._domid, index)

    def fileno(self) -> int:
        return self._xenstore.fileno()

    def state(self) -> SuspendState:
        """Ask xenstored, within its time limit, and the hypervisor.

        A watch that fires while xenstored is being asked no longer makes the descriptor readable,
        so the change behind it must be seen here: hence the loop.
        """
        while True:
            self._xenstore.take_events()
            acknowledged = self._acknowledged()
            state = self._guest_state()
            if not self._xenstore.take_events():
                break
        match state:
            case GuestState.SUSPENDED:
                return SuspendState.SUSPENDED
            case GuestState.RUNNING | GuestState.PAUSED:
                return SuspendState.ACKNOWLEDGED if acknowledged else SuspendState.REQUESTED
            case _:
                return SuspendState.CRASHED

    def _acknowledged(self) -> bool:
        """domain_suspend_pvcontrol_acked: the node holds anything but the request, or nothing."""
        match self._method:
            case RequestMethod.EVENT_CHANNEL:
                return False
            case RequestMethod.SHUTDOWN | RequestMethod.NOT_NEEDED:
                return True
            case RequestMethod.CONTROL_NODE:
                return self._xenstore.read(control_node(self._domid)) != REQUEST

    def _guest_state(self) -> GuestState | None:
        """The domain's state; None if it is gone, or about to be."""
        try:
            info = self._xenctrl.domain_getinfo(self._domid)
        except ProcessLookupError:
            return None
        return None if info.dying else state_of(info)

    def withdraw(self) -> bool:
        """Only a request in the control node can be withdrawn: not an event that was sent, nor what
        the hypervisor does."""
        if self._guest_state() is None:
            return True
        return self._method is RequestMethod.CONTROL_NODE and withdraw_request(
            self._xenstore, self._domid
        )

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._xenstore.close()
        self._xenctrl.close()


def _port(text: str | None) -> int:
    if text is None or not text.isdecimal():
        raise OSError(errno.EPROTO, f"device/suspend/event-channel holds {text!r}, want a port")
    return int(text)
