"""A restore by the host's own toolstack (`interface.RestoreProgram`), which we feed, watch and end.

If it is killed it leaves a domain with the name that we gave; we destroy that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xen_save_helper.ipc_schema.board import VARIABLE as BOARD
from xen_save_helper.ipc_schema.causes import SYSTEM, Cause, Why, why
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.control_directory import DIRECTORY_VARIABLE
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.aio import blocking
from xen_save_helper.toolstack.aio.patience import patience
from xen_save_helper.toolstack.aio.splice import StreamRelay, make_pipe
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.process import HelperProcess
from xen_save_helper.toolstack.helpers.wait_log import STREAM, WaitLog
from xen_save_helper.toolstack.operations.restore import RestoreParameters, RestoreResult
from xen_save_helper.toolstack.operations.stream_operation import OperationReport, Word, rc_of
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.standstill import tell

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import RestoreProgram

_SILENCE: Final = Why(Cause.SILENCE)

LOOK: Final = 1.0
"""Seconds between looks at the restore's progress."""

_LINES: Final = 200
"""Lines of the program's output that are kept, to say why it failed."""


class HostRestore:
    """One restore. `cancel` makes `run` end soon, in order, with ERROR_ABORTED."""

    def __init__(
        self, ctx: Context, parameters: RestoreParameters, program: RestoreProgram
    ) -> None:
        self._ctx = ctx
        self._parameters = parameters
        self._program = program
        self._report = OperationReport(ctx, None)
        self._lines: list[str] = []
        self._relay: StreamRelay | None = None
        self._process: HelperProcess | None = None
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._given_up = asyncio.Event()
        self._rc = 0
        self._word: asyncio.Task[None] | None = None

    async def run(self) -> RestoreResult:
        """Restore the domain and leave it paused. If the rc is not 0, no domain is left."""
        name = self._parameters.name
        if await self._find() is not None:
            self._give_up(Error.INVAL, f"there is already a domain {name!r}")
        if self._given_up.is_set():
            return self._result(None)
        try:
            self._start()
        except OSError as error:
            self._give_up(
                Error.FAIL, f"cannot start {self._program.command[0]}: {error}", why(error)
            )
            return self._result(None)
        status = await self._wait()
        if self._word is not None:
            if self._rc or status:
                self._word.cancel()
            await asyncio.wait({self._word})
        if status and not self._rc:
            self._give_up(Error.FAIL, self._why(status), Why(Cause.HELPER))
        domid = await self._find()
        if not self._rc and domid is None:
            self._give_up(Error.FAIL, f"the domain {name!r} is gone")
        if self._rc and domid is not None:
            domid = await self._destroy(domid)
        return self._result(domid)

    def cancel(self) -> None:
        self._give_up(Error.ABORTED, "the restore was cancelled", Why(Cause.ABORTED))

    def _result(self, domid: int | None) -> RestoreResult:
        rc = self._rc
        self._report.domid = domid
        self._report.event("restore_ended", rc=rc, **self._report.cause(rc))
        reason = self._report.reason if rc else ""
        return RestoreResult(Error(rc), domid, False, None, reason, self._report.why)

    def _give_up(self, rc: int, reason: str, why: Why = SYSTEM) -> None:
        """Keep the first reason, and end what is running."""
        if not self._rc:
            self._rc = rc
            self._report.failed(reason, why, rc=rc)
        if self._relay is not None:
            self._relay.stop()
        self._given_up.set()

    def _start(self) -> None:
        """Start the program and its relay. Raises OSError."""
        if self._program.remark:
            self._ctx.warn(self._program.remark)
        environment = {
            **self._program.environment,
            self._program.helper_variable: str(self._ctx.program.path),
            "XEN_SAVE_HELPER_STREAM_STALL": str(self._ctx.limits.sender_silence),
            "XEN_SAVE_HELPER_ENGINE": self._ctx.engine.value,
            "XEN_SAVE_HELPER_MISSING_CPU_FEATURES": self._ctx.missing_cpu_features.value,
        }
        if self._ctx.control is not None:
            # By its path: the program may leave processes behind, which need not inherit it.
            environment[BOARD] = self._ctx.control.board.path
        if self._parameters.link:
            # A pager connects, and listens nowhere.
            environment["XEN_SAVE_HELPER_POSTCOPY"] = "0.0.0.0"
            environment[DIRECTORY_VARIABLE] = str(self._ctx.host.control_dir)
        reader, writer = make_pipe()
        try:
            # It moves nothing before the loop's next turn.
            self._relay = StreamRelay(
                self._parameters.restore_fd, writer, self._program.preface, self._relayed
            )
            self._process = HelperProcess(
                self._program.command,
                pass_fds=(),
                stdin=reader,
                stdout=None,
                environment=environment,
                line=self._line,
                ended=self._ended,
                stopped_limit=self._ctx.limits.stopped,
                stood_still=partial(tell, self._ctx, self._program.command[0]),
                ignores_sigpipe=False,
            )
        finally:
            os.close(reader)
        self._report.event(
            "restore_program_started", program=self._process.pid, environment=environment
        )

    def _relayed(self, error: OSError | None) -> None:
        if error is not None:
            self._give_up(rc_of(error), f"reading the stream: {error}", why(error))

    def _line(self, line: str) -> None:
        self._lines = [*self._lines[-_LINES:], line]
        level = XentoollogLevel.ERROR if ": error: " in line else XentoollogLevel.INFO
        self._ctx.say(level, Path(self._program.command[0]).name, line)
        self._ctx.trace.event("restore_program_says", line=line)

    async def _ended(self, status: int) -> None:
        self._report.event("restore_program_exited", status=status)
        if self._relay is not None:
            self._relay.stop()
        self._status.set_result(status)

    async def _wait(self) -> int:
        """Wait for the program's end, as long as the stream moves or the last steps may be under
        way; end it once it is given up. Returns its exit status."""
        assert self._process is not None
        assert self._relay is not None
        relay = self._relay
        moved, taken = relay.moved, relay.taken
        quiet, waits = Patience(0, self._now()), WaitLog(STREAM, self._ctx.warn)
        while not self._given_up.is_set() and not self._status.done():
            await self._either(LOOK)
            quiet.look(self._now())
            if relay.taken and not taken:
                self._say_receiving()
            if (relay.moved, relay.taken) != (moved, taken):
                moved, taken = relay.moved, relay.taken
                quiet.restart(self._now())
            waits.look(quiet.spent)
            self._check(quiet.spent, not_begun=moved > 0 == taken)
            await self._tell_domid()
        limit = self._ctx.limits.abort
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            if await self._ended_within(limit):
                break
        # SIGKILL cannot be refused.
        return await self._status

    def _say_receiving(self) -> None:
        if self._parameters.receiving is not None:
            self._word = spawn(self._say(self._parameters.receiving))

    async def _say(self, word: Word) -> None:
        try:
            await word()
        except OSError as error:
            self._give_up(rc_of(error), message_of(error), why(error))

    async def _tell_domid(self) -> None:
        """Tell those who ask which domain it is, once the helper works on it."""
        control = self._ctx.control
        if control is None or control.steering.identity.domid >= 0 or not control.board.phase:
            return
        with contextlib.suppress(OSError):  # the end of the restore will show what that means
            find = partial(self._ctx.host.find, self._parameters.name)
            control.steering.has_domid(await blocking.call(self._ctx.limits.callback, find))

    def _check(self, quiet: float, *, not_begun: bool) -> None:
        """Give up if it has been quiet for too long. A program that has not begun on a stream that
        is there waits its turn (for xl's lock, while another guest comes in)."""
        limits = self._ctx.limits
        if not_begun and quiet >= limits.admission:
            what = f"{self._program.command[0]} has not begun to read the stream"
            self._give_up(Error.TIMEDOUT, f"{what} for {limits.admission:g} s", _SILENCE)
        elif not not_begun and quiet >= limits.sender_silence:
            reason = f"neither bytes nor the end have come for {limits.sender_silence:g} s"
            self._give_up(Error.TIMEDOUT, reason, _SILENCE)

    async def _either(self, seconds: float) -> None:
        """Wait until the program ends or is given up, `seconds` at most."""
        given_up = spawn(self._given_up.wait())
        try:
            waits: set[asyncio.Future[Any]] = {self._status, given_up}
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            given_up.cancel()

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with patience(seconds):
                await asyncio.wait({self._status})
        except TimeoutError:
            return False
        return True

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _why(self, status: int) -> str:
        """The program's account of its failure."""
        program = Path(self._program.command[0]).name
        if status < 0:
            return f"{program} was ended by {signal.Signals(-status).name}"
        return f"{program}: {self._program.complaint(self._lines) or f'exit status {status}'}"

    async def _find(self) -> int | None:
        def find() -> int | None:
            try:
                return self._ctx.host.find(self._parameters.name)
            except ProcessLookupError:
                return None

        try:
            return await blocking.call(self._ctx.limits.callback, find)
        except OSError as error:
            self._give_up(rc_of(error), f"the host does not list its domains: {error}", why(error))
            return None

    async def _destroy(self, domid: int) -> int | None:
        try:
            await blocking.call(self._ctx.limits.callback, self._ctx.host.destroy, domid)
        except ProcessLookupError:
            return None
        except OSError as error:
            self._report.failed(f"the domain cannot be destroyed: {error}", why(error))
            return domid
        return None
