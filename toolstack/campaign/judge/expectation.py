"""What a fault may lead to: whether the operation fails, with which codes and causes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from xen_save_helper.ipc_schema.causes import Cause
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.plan import Fault
from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.toolstack.limits import Limits


class Effect(Enum):
    NONE = "goes on"
    EITHER = "may fail"
    FAILS = "must fail"


class Spoils(Enum):
    """What may be wrong with the guest at the destination, because nothing protects it."""

    NOTHING = "nothing"
    DEVICE_MODEL = "its device model: it may crash"
    MEMORY = "its memory, or its registers: it may crash, or run with a wrong page"


@dataclass(frozen=True)
class Expectation:
    """What a fault leads to if it is the only one.

    `rcs` and `causes` are the codes and the causes that the failure may have; empty for any.
    `errnoval` is an errno that an event must tell, 0 for none. `status` is the status of a helper
    that ends by itself, None for one of its own exit statuses. `controller_dies`: the fault ends
    the controller at its side. `corrupts`: it changes the stream, and `effect` is that on the
    stream's reader. `guest_dies`: the guest crashes by itself. `loses_pages`: last pages that have
    a link of their own cannot come any more. `waits` names the fields of `Limits`
    that may have to pass, one after another, before anybody notices; None for all of them.
    """

    effect: Effect
    causes: frozenset[Cause] = frozenset()
    rcs: frozenset[int] = frozenset()
    errnoval: int = 0
    status: int | None = None
    controller_dies: bool = False
    corrupts: bool = False
    spoils: Spoils = Spoils.NOTHING
    guest_dies: bool = False
    loses_pages: bool = False
    waits: tuple[str, ...] | None = None


_FAIL: Final = -3
_TIMEDOUT: Final = -9
GUEST_TIMEDOUT: Final = frozenset({-8})
ABORTED: Final = frozenset({-22})
FAILS: Final = frozenset({_FAIL})
ALONE: Final = frozenset({_TIMEDOUT})
LATE: Final = FAILS | ALONE
OF_A_PEER: Final[Mapping[Side, frozenset[int]]] = {
    Side.SOURCE: LATE,
    Side.DESTINATION: LATE | ABORTED,
}
"""The codes at a side if the other side has failed: the source ends a receiver that takes too long
by SIGTERM."""

SILENCE: Final = frozenset({Cause.CHANNEL, Cause.HELPER, Cause.PEER, Cause.SILENCE})
"""Causes seen by whoever waits for a process that says nothing, has hung up, or is dead."""
MISUNDERSTOOD: Final = SILENCE | {Cause.PROTOCOL}
BAD_ANSWER: Final = frozenset({Cause.SYSTEM, Cause.INVALID, Cause.ABORTED})
"""Causes of a callback that has answered with a failure, or with an unknown value."""
MISREAD: Final = frozenset({Cause.INVALID, Cause.PEER, Cause.PROTOCOL, Cause.SILENCE})
"""Causes of a stream that does not continue as its lengths or its order say: the reader finds
something else, or waits for more, and then its writer waits as well."""
CONTENTS: Final = frozenset({Cause.SYSTEM})
"""Causes of contents that the host refuses: nothing protects them on their way."""
UNSAID: Final = MISREAD | {Cause.DESTINATION}
"""Causes of a message of the handshake that does not arrive as it was sent."""

NONE: Final = Expectation(Effect.NONE)
EITHER: Final = Expectation(Effect.EITHER, rcs=LATE)


def short(limits: Limits) -> float:
    """Seconds that exceed no limit, even on a slow machine."""
    return 0.5 * min(limits.suspend, limits.stream_stall, limits.abort)


def outlasted(limits: Limits) -> float:
    """Seconds that a process may be stopped while somebody waits for it who cannot see that."""
    return 0.7 * min(limits.stream_stall, limits.handshake)


def stops(fault: Fault) -> bool:
    """Whether it stops its process."""
    kind, value = fault.action
    by_signal = kind is actions.DIE or (kind is actions.SIGNAL and value == "STOP")
    return kind is actions.STOP or (by_signal and value in actions.STOPPING)


def dies(fault: Fault) -> bool:
    """Whether a signal ends the process whatever handles it; nothing handles SIGKILL."""
    kind, value = fault.action
    return kind is actions.DIE or (kind is actions.SIGNAL and value == "KILL")
