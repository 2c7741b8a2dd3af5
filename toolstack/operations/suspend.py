"""Suspend a guest by the rules of `toolstack.rules.suspend`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from xen_save_helper.ipc_schema.causes import why
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.aio import blocking
from xen_save_helper.toolstack.aio.patience import Timer
from xen_save_helper.toolstack.operations.settle import how_guest_ended, state_of
from xen_save_helper.toolstack.rules.suspend import (
    PAUSED,
    Actions,
    Finished,
    StartLimit,
    SuspendRules,
    Withdraw,
)

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import Host, SuspendRequest
    from xen_save_helper.toolstack.limits import Limits


class GuestSuspension:
    """The suspension of one guest. `rules` has what is known of it at any time."""

    def __init__(self, host: Host, domid: int, limits: Limits) -> None:
        self.rules = SuspendRules()
        self._host = host
        self._domid = domid
        self._limits = limits
        self._changed = asyncio.Event()
        self._abort_rc = 0
        self._over = False
        """Whether this stage's limit has passed."""
        self._timer: Timer | None = None
        self._finished: Finished | None = None

    def abort(self, rc: int) -> None:
        """Withdraw the request; `run` returns soon."""
        self._abort_rc = self._abort_rc or rc
        self._changed.set()

    async def run(self) -> Finished:
        """Ask the guest to suspend, and wait for the outcome.

        If the host fails, the rc is ERROR_FAIL. Do not cancel this: use `abort`.
        """
        try:
            if await self._paused():
                return Finished(Error.FAIL, PAUSED)
            request = await blocking.call(
                self._limits.callback, self._host.suspend_request, self._domid
            )
        except ProcessLookupError:
            return Finished(Error.FAIL, how_guest_ended(None))
        except OSError as error:
            # A call that took too long may still have its effect.
            self.rules.may_suspend = isinstance(error, TimeoutError)
            return Finished(
                Error.FAIL, f"the guest cannot be asked to suspend: {error}", why(error)
            )
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
            return Finished(Error.FAIL, f"the suspend request broke: {error}", why(error))
        finally:
            loop.remove_reader(request.fileno())
            if self._timer is not None:
                self._timer.cancel()
        return self._finished

    async def _limit(self, request: SuspendRequest) -> None:
        """Apply the limit, unless the guest has just got further."""
        stage = self.rules.stage
        await self._do(self._look(request), request)
        if self.rules.stage is stage:
            await self._do(self.rules.limit(paused=await self._paused()), request)

    async def _paused(self) -> bool:
        state = await blocking.call(self._limits.callback, state_of, self._host, self._domid)
        return state == "paused"

    def _look(self, request: SuspendRequest) -> Actions:
        from xen_save_helper.toolstack.hosts.interface import SuspendState

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
                actions = self.rules.crashed(how_guest_ended(state_of(self._host, self._domid)))
        if self._abort_rc:
            actions += self.rules.abort(self._abort_rc)
        return actions

    async def _wait_for_change(self) -> bool:
        """Returns False once the limit has passed."""
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
