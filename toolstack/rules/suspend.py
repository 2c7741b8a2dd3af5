"""The rules of suspending a guest (libxl_dom_suspend.c): request, acknowledgement, suspension.

| stage        | event                      | next stage   | what happens                          |
|--------------|----------------------------|--------------|---------------------------------------|
| REQUESTED    | acknowledged               | ACKNOWLEDGED | the limit restarts                    |
| REQUESTED    | limit, and withdrawn       | ENDED        | GUEST_TIMEDOUT                        |
| REQUESTED    | limit, but not withdrawn   | ACKNOWLEDGED | a late answer: the limit restarts     |
| ACKNOWLEDGED | limit, and withdrawn       | ENDED        | GUEST_TIMEDOUT                        |
| ACKNOWLEDGED | limit, but not withdrawn   | ENDED        | GUEST_TIMEDOUT; it may yet suspend    |
| both         | suspended                  | ENDED        | 0                                     |
| both         | refused, crashed           | ENDED        | FAIL                                  |
| both         | aborted, and withdrawn     | ENDED        | the abort's rc                        |
| both         | aborted, but not withdrawn | ENDED        | the abort's rc; it may yet suspend    |

libxl does not withdraw after the second limit, nor on an abort: a guest that suspends after all
stays suspended, and nobody knows. Here the caller learns that it may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from xen_save_helper.ipc_schema.causes import Cause, Why
from xen_save_helper.ipc_schema.errors import Error

_GUEST: Final = Why(Cause.GUEST)
PAUSED: Final = "the guest is paused, and cannot suspend: unpause it first"


class SuspendStage(Enum):
    REQUESTED = "requested"
    ACKNOWLEDGED = "acknowledged"
    ENDED = "ended"


@dataclass(frozen=True)
class StartLimit:
    """Start or restart the limit; report `limit` when it has passed."""


@dataclass(frozen=True)
class Withdraw:
    """Take the request back; report `withdrawn`."""


@dataclass(frozen=True)
class Finished:
    """The end: `rc`, and a line for people if it is not 0."""

    rc: int
    reason: str
    why: Why = _GUEST


SuspendAction = StartLimit | Withdraw | Finished
Actions = tuple[SuspendAction, ...]


class SuspendRules:
    """Event in, actions out. It begins with the request made and its limit running, and ignores
    events after the end."""

    def __init__(self) -> None:
        self.stage = SuspendStage.REQUESTED
        self.guest_responded = False
        """Whether the guest gave any answer at all."""
        self.may_suspend = False
        """Whether the guest has suspended for the request, or still may."""
        self._withdrawing: tuple[Finished, SuspendStage] | None = None

    def suspended(self) -> Actions:
        self.guest_responded = self.may_suspend = True
        return self._end(Finished(0, ""))

    def acknowledged(self) -> Actions:
        self.guest_responded = True
        if self.stage is not SuspendStage.REQUESTED:
            return ()
        self.stage = SuspendStage.ACKNOWLEDGED
        return () if self._withdrawing else (StartLimit(),)

    def refused(self) -> Actions:
        self.guest_responded = True
        return self._end(Finished(Error.FAIL, "the guest refuses to suspend"))

    def crashed(self, how: str = "the guest has crashed") -> Actions:
        """The guest can no longer suspend; `how` says what became of it."""
        self.guest_responded = True
        return self._end(Finished(Error.FAIL, how))

    def limit(self, *, paused: bool = False) -> Actions:
        """`paused`: its vCPUs did not run, so it could not answer."""
        verb = "acknowledge" if self.stage is SuspendStage.REQUESTED else "complete"
        reason = f"the guest did not {verb} the suspend request in time"
        if paused:
            reason = PAUSED
        return self._withdraw(Finished(Error.GUEST_TIMEDOUT, reason))

    def abort(self, rc: int) -> Actions:
        withdrawn = "the suspend request was withdrawn"
        return self._withdraw(Finished(rc, withdrawn, Why(Cause.ABORTED)))

    def withdrawn(self, taken_back: bool) -> Actions:
        """`taken_back`: the guest will no longer suspend for the request."""
        if self.stage is SuspendStage.ENDED or self._withdrawing is None:
            return ()
        (finished, stage), self._withdrawing = self._withdrawing, None
        if taken_back:
            return self._end(finished)
        self.guest_responded = True
        if stage is SuspendStage.REQUESTED and finished.rc == Error.GUEST_TIMEDOUT:
            self.stage = SuspendStage.ACKNOWLEDGED
            return (StartLimit(),)
        self.may_suspend = True
        reason = f"{finished.reason}, and may suspend after all"
        return self._end(replace(finished, reason=reason))

    def _withdraw(self, finished: Finished) -> Actions:
        if self.stage is SuspendStage.ENDED:
            return ()
        if self._withdrawing is not None:
            # The request is being withdrawn already; an abort outranks the limit.
            if self._withdrawing[0].rc == Error.GUEST_TIMEDOUT:
                self._withdrawing = (finished, self.stage)
            return ()
        self._withdrawing = (finished, self.stage)
        return (Withdraw(),)

    def _end(self, finished: Finished) -> Actions:
        if self.stage is SuspendStage.ENDED:
            return ()
        self.stage = SuspendStage.ENDED
        return (finished,)
