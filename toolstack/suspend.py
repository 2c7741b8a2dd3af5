"""Suspend a guest: the request, the guest's acknowledgement, its suspension (libxl_dom_suspend.c).

| stage        | event                      | next stage   | what happens                          |
|--------------|----------------------------|--------------|---------------------------------------|
| REQUESTED    | acknowledged               | ACKNOWLEDGED | the limit starts anew                 |
| REQUESTED    | limit, and withdrawn       | ENDED        | GUEST_TIMEDOUT                        |
| REQUESTED    | limit, but not withdrawn   | ACKNOWLEDGED | a late answer: the limit starts anew  |
| ACKNOWLEDGED | limit, and withdrawn       | ENDED        | GUEST_TIMEDOUT                        |
| ACKNOWLEDGED | limit, but not withdrawn   | ENDED        | GUEST_TIMEDOUT; it may yet suspend    |
| both         | suspended                  | ENDED        | 0                                     |
| both         | refused, crashed           | ENDED        | FAIL                                  |
| both         | aborted, and withdrawn     | ENDED        | the abort's rc                        |
| both         | aborted, but not withdrawn | ENDED        | the abort's rc; it may yet suspend    |

libxl does not withdraw after the second limit, nor on an abort: a guest that suspends after all
then stays so, and nobody knows. Here the caller is told that it may.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from ipc_schema.errors import Error
from toolstack import blocking
from toolstack.patience import Timer
from toolstack.settle import state_of

if TYPE_CHECKING:
    from helper.hypervisors.interface import Host, SuspendRequest
    from toolstack.limits import Limits


PAUSED: Final = "the guest is paused, and cannot suspend: unpause it first"


class Stage(Enum):
    REQUESTED = "requested"
    ACKNOWLEDGED = "acknowledged"
    ENDED = "ended"


@dataclass(frozen=True)
class StartLimit:
    """The limit starts (anew); report `limit` when it is over."""


@dataclass(frozen=True)
class Withdraw:
    """Take the request back; report `withdrawn`."""


@dataclass(frozen=True)
class Finished:
    """The end: `rc`, and a line for people where it is not 0."""

    rc: int
    reason: str


SuspendAction = StartLimit | Withdraw | Finished
Actions = tuple[SuspendAction, ...]


class SuspendRules:
    """Event in, actions out. Begins with the request made and its limit running; events after the
    end are ignored."""

    def __init__(self) -> None:
        self.stage = Stage.REQUESTED
        self.guest_responded = False
        """The guest gave any answer at all."""
        self.may_suspend = False
        """The guest has suspended for the request, or may yet."""
        self._withdrawing: tuple[int, str, Stage] | None = None

    def suspended(self) -> Actions:
        self.guest_responded = self.may_suspend = True
        return self._end(0, "")

    def acknowledged(self) -> Actions:
        self.guest_responded = True
        if self.stage is not Stage.REQUESTED:
            return ()
        self.stage = Stage.ACKNOWLEDGED
        return () if self._withdrawing else (StartLimit(),)

    def refused(self) -> Actions:
        self.guest_responded = True
        return self._end(Error.FAIL, "the guest refuses to suspend")

    def crashed(self, how: str = "the guest has crashed") -> Actions:
        """There is no guest any more that could suspend; `how` says what has become of it."""
        self.guest_responded = True
        return self._end(Error.FAIL, how)

    def limit(self, *, paused: bool = False) -> Actions:
        """`paused`: its vCPUs do not run, so that it could not answer."""
        verb = "acknowledge" if self.stage is Stage.REQUESTED else "complete"
        reason = f"the guest did not {verb} the suspend request in time"
        if paused:
            reason = PAUSED
        return self._withdraw(Error.GUEST_TIMEDOUT, reason)

    def abort(self, rc: int) -> Actions:
        return self._withdraw(rc, "the suspend request was given up")

    def withdrawn(self, taken_back: bool) -> Actions:
        """Whether the guest will not suspend any more for the request."""
        if self.stage is Stage.ENDED or self._withdrawing is None:
            return ()
        (rc, reason, stage), self._withdrawing = self._withdrawing, None
        if taken_back:
            return self._end(rc, reason)
        self.guest_responded = True
        if stage is Stage.REQUESTED and rc == Error.GUEST_TIMEDOUT:
            self.stage = Stage.ACKNOWLEDGED
            return (StartLimit(),)
        self.may_suspend = True
        return self._end(rc, f"{reason}, and may suspend after all")

    def _withdraw(self, rc: int, reason: str) -> Actions:
        if self.stage is Stage.ENDED:
            return ()
        if self._withdrawing is not None:
            # The request is being taken back already; an abort outranks the limit.
            if self._withdrawing[0] == Error.GUEST_TIMEDOUT:
                self._withdrawing = (rc, reason, self.stage)
            return ()
        self._withdrawing = (rc, reason, self.stage)
        return (Withdraw(),)

    def _end(self, rc: int, reason: str) -> Actions:
        if self.stage is Stage.ENDED:
            return ()
        self.stage = Stage.ENDED
        return (Finished(rc, reason),)


class GuestSuspension:
    """Suspends one guest by the rules above. `rules` tells what is known at any time."""

    def __init__(self, host: Host, domid: int, limits: Limits) -> None:
        self.rules = SuspendRules()
        self._host = host
        self._domid = domid
        self._limits = limits
        self._changed = asyncio.Event()
        self._abort_rc = 0
        self._over = False
        """The limit of this stage."""
        self._timer: Timer | None = None
        self._finished: Finished | None = None

    def abort(self, rc: int) -> None:
        """Take the request back; `run` returns soon."""
        self._abort_rc = self._abort_rc or rc
        self._changed.set()

    async def run(self) -> Finished:
        """Ask the guest to suspend and wait for the end of the matter.

        A host that fails is an end with rc ERROR_FAIL. Not to be cancelled: use `abort`.
        """
        try:
            if await self._paused():
                return Finished(Error.FAIL, PAUSED)
            request = await blocking.call(
                self._limits.callback, self._host.suspend_request, self._domid
            )
        except ProcessLookupError:
            return Finished(Error.FAIL, self._gone())
        except OSError as error:
            # What took too long may have its effect yet.
            self.rules.may_suspend = isinstance(error, TimeoutError)
            return Finished(Error.FAIL, f"the guest cannot be asked to suspend: {error}")
        try:
            return await self._wait(request)
        finally:
            request.close()

    async def _wait(self, request: SuspendRequest) -> Finished:
        loop = asyncio.get_running_loop()
        loop.add_reader(request.fileno(), self._changed.set)
        try:
            await self._do((StartLimit(),), request)
            while self._finished is None:
                await self._do(self._look(request), request)
                if self._finished is None and not await self._wait_for_change():
                    await self._limit(request)
        except OSError as error:
            self.rules.may_suspend = True
            return Finished(Error.FAIL, f"the suspend request broke: {error}")
        finally:
            loop.remove_reader(request.fileno())
            if self._timer is not None:
                self._timer.cancel()
        return self._finished

    async def _limit(self, request: SuspendRequest) -> None:
        """The limit is over, unless the guest has just got further."""
        stage = self.rules.stage
        await self._do(self._look(request), request)
        if self.rules.stage is stage:
            await self._do(self.rules.limit(paused=await self._paused()), request)

    async def _paused(self) -> bool:
        state = await blocking.call(self._limits.callback, state_of, self._host, self._domid)
        return state == "paused"

    def _look(self, request: SuspendRequest) -> Actions:
        from helper.hypervisors.interface import SuspendState

        actions: Actions = ()
        match request.state():
            case SuspendState.REQUESTED:
                pass
            case SuspendState.ACKNOWLEDGED:
                actions = self.rules.acknowledged()
            case SuspendState.SUSPENDED:
                actions = self.rules.suspended()
            case SuspendState.REFUSED:
                actions = self.rules.refused()
            case SuspendState.CRASHED:
                actions = self.rules.crashed(self._how_it_ended())
        if self._abort_rc:
            actions += self.rules.abort(self._abort_rc)
        return actions

    def _gone(self) -> str:
        return f"domain {self._domid} is gone: it was destroyed"

    def _how_it_ended(self) -> str:
        match state_of(self._host, self._domid):
            case None:
                return self._gone()
            case "shut down":
                return "the guest has shut itself down"
        return "the guest has crashed"

    async def _wait_for_change(self) -> bool:
        """False once the limit is over."""
        await self._changed.wait()
        self._changed.clear()
        over, self._over = self._over, False
        return not over

    def _limit_over(self) -> None:
        self._over = True
        self._changed.set()

    async def _do(self, actions: Actions, request: SuspendRequest) -> None:
        for action in actions:
            match action:
                case StartLimit():
                    if self._timer is not None:
                        self._timer.cancel()
                    self._over = False
                    self._timer = Timer(self._limits.suspend, self._limit_over)
                case Withdraw():
                    taken_back = await blocking.call(self._limits.callback, request.withdraw)
                    await self._do(self.rules.withdrawn(taken_back), request)
                case Finished():
                    self._finished = action
