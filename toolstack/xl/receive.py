"""The receiving side of a migration: `xl migrate-receive`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.causes import why
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.control import Role as ControlRole
from xen_save_helper.ipc_schema.errors import DecodeError, Error
from xen_save_helper.ipc_schema.streams import xl_handshake, xl_header
from xen_save_helper.ipc_schema.streams.xl_handshake import Verdict
from xen_save_helper.toolstack.aio import blocking, descriptors
from xen_save_helper.toolstack.cancellation import end_in_order, not_told
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers import page_server
from xen_save_helper.toolstack.operations.domain_restore import restore_domain, restore_parameters
from xen_save_helper.toolstack.operations.domain_save import beyond_sparse
from xen_save_helper.toolstack.operations.own_stream import OwnStream
from xen_save_helper.toolstack.rules import arguments, handshake
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.handshake import RECEIVER_INTERRUPTIBLE, Event, Receiver
from xen_save_helper.toolstack.standstill import stands_still, telling
from xen_save_helper.toolstack.xl import link
from xen_save_helper.toolstack.xl.conduct import Action, HandshakeSide
from xen_save_helper.toolstack.xl.controlled import controlled
from xen_save_helper.toolstack.xl.journal import Journal, Promise, Role
from xen_save_helper.toolstack.xl.link import HandshakeLink

_VERIFY_FAILED = ("verify failed", "verify pfn")
"""How our engine and libxc begin the log line for a page that differs from what was sent."""


@dataclass(frozen=True)
class ReceiveResult:
    """How a receive ended. `name` and `domid` are the guest's if it runs here. `reason` is a line
    for people, empty if nothing failed; `told`: the sender has it in our verdict. `sender_gone`:
    all that is known is that the sender has gone or ended its stream."""

    started: bool
    rc: Error
    name: str
    domid: int | None
    reason: str
    told: bool = False
    sender_gone: bool = False


async def receive(
    ctx: Context,
    stream_fd: int,
    back_fd: int,
    *,
    peer: str,
    leave_paused: bool = False,
    on_end: Callable[[ReceiveResult], object] = not_told,
) -> ReceiveResult:
    """Receive one guest: the stream comes from `stream_fd`, messages and page faults go to
    `back_fd`. Works on duplicates of these, and shuts them if no guest was started
    (`domain_suspend`). `leave_paused`: the guest is ours in the end, but does not run yet.

    A cancellation destroys the copy in order, unless the guest may run here already. However the
    receive ends, `on_end` is called with the result, then the cancellation is raised.

    Raises TypeError and ValueError for invalid arguments; otherwise it returns.
    """
    arguments.instance("ctx", ctx, Context)
    descriptors.readable("stream_fd", stream_fd)
    descriptors.writable("back_fd", back_fd)
    with OwnStream(stream_fd, back_fd) as own:

        async def serve() -> ReceiveResult:
            result = await _Receiving(ctx, own.stream_fd, own.back_fd, peer, leave_paused).run()
            if not result.started:
                own.shut()
            return result

        return await end_in_order(serve(), on_end)


class _Receiving(HandshakeSide[Receiver]):
    past_return = "the guest may run here already: to stop now would lose its newer state"
    streaming = Receiver.RUN_STREAM
    interruptible = RECEIVER_INTERRUPTIBLE

    def __init__(
        self, ctx: Context, stream_fd: int, back_fd: int, peer: str, leave_paused: bool
    ) -> None:
        super().__init__(replace(ctx, log=self._log), handshake.receiver())
        self._log_line = ctx.log
        self._leave_paused = leave_paused
        self._stream_fd = stream_fd
        self._back_fd = back_fd
        self._peer = peer
        parent_stopped = partial(stands_still, os.getppid())
        self._to_sender = HandshakeLink(ctx, Operation.RESTORE, stream_fd, back_fd, parent_stopped)
        self._journal: Journal | None = None
        self._config: dict[str, Any] = {}
        self._flags = 0
        """The optional flags of the xl header."""
        self._told = False
        self._name = ""
        self._domid: int | None = None

    @property
    def _link(self) -> HandshakeLink:
        return self._to_sender

    @property
    def _actions(self) -> dict[Receiver, Action]:
        return {
            Receiver.SAY_BANNER: lambda: self._say(xl_handshake.BANNER),
            Receiver.READ_CONFIG: self._read_config,
            Receiver.EXAMINE: self._examine,
            Receiver.ACCEPT: lambda: self._say_verdict(Verdict(0, "")),
            Receiver.REFUSE: self._refuse,
            Receiver.RUN_STREAM: self._run_stream,
            Receiver.SAY_READY: lambda: self._say(xl_handshake.READY),
            Receiver.READ_GO: self._read_go,
            Receiver.RENAME: self._rename,
            Receiver.UNPAUSE: self._unpause,
            Receiver.REPORT_STARTED: lambda: self._report(b"\0"),
            Receiver.REPORT_FAILED: self._report_failed,
            Receiver.DESTROY_TO_GIVE_BACK: self._destroy,
            Receiver.ALLOW_BACK: lambda: self._say(xl_handshake.PERMISSION),
            Receiver.DESTROY: self._destroy,
            Receiver.RENAME_RESUMED: self._rename_resumed,
            Receiver.SAY_SYNC: lambda: self._say(xl_handshake.SYNC),
        }

    async def run(self) -> ReceiveResult:
        self._task = asyncio.current_task()
        with contextlib.ExitStack() as self._seen:
            result = await self._run()
            if self._ctx.control is not None and not result.started:
                self._ctx.control.ended = result.reason or "not started"
            return result

    async def _run(self) -> ReceiveResult:
        try:
            with telling(self._ctx):
                await self._run_handshake()
        except BaseException:
            # A bug of ours. If it left nothing, there is nothing to recover.
            if self._journal is not None and self._domid is None and not self._is_here():
                self._journal.close()
            raise
        started = self._machine.state is Receiver.STARTED
        if self._journal is not None and self._over():
            self._journal.close()
        cause, rc = self._failures.cause, self._failures.rc
        reason = self._reason()
        self._ctx.trace.event("received", started=started, rc=rc, reason=reason, **self._cause)
        gone = cause is not None and cause.theirs
        return ReceiveResult(
            started, Error(rc), self._name, self._domid, reason, self._told, sender_gone=gone
        )

    def _log(self, level: int, context: str, text: str) -> None:
        """Log, and note what a verify pass finds (SUSPEND_DEBUG): it fails nothing, but the sender
        must be told."""
        if text.startswith(_VERIFY_FAILED):
            self._fail(0, text)
        self._log_line(level, context, text)

    def _over(self) -> bool:
        """Whether nothing is left of the copy, except for a guest that was started."""
        if self._machine.state is Receiver.STARTED:
            return not self._is_here()
        return self._domid is None

    def _is_here(self) -> bool:
        """Whether there is a copy that does not have the guest's name yet."""
        return self._domid_of(self._incoming) is not None

    def _domid_of(self, name: str) -> int | None:
        try:
            return self._ctx.host.find(name)
        except ProcessLookupError:
            return None

    @property
    def _incoming(self) -> str:
        return self._name + handshake.INCOMING

    async def _report(self, code: bytes) -> Event:
        await self._link.say(xl_handshake.REPORT, xl_handshake.REPORT.data + code)
        return Event.OK

    async def _read_config(self) -> Event:
        limit = self._ctx.limits.handshake
        self._config, self._flags = await self._link.hear_by(
            xl_handshake.CONFIG, lambda: read_config(self._stream_fd, limit)
        )
        self._name = name_of(self._config)
        self._ctx = replace(self._ctx, trace=self._ctx.trace.about(self._name))
        self._ctx = self._seen.enter_context(
            controlled(
                self._ctx,
                ControlRole.RECEIVE,
                self._name,
                task=self._task,
                too_late=self._why_too_late,
                step=lambda: str(self._machine.state.value),
            )
        )
        return Event.OK

    async def _examine(self) -> Event:
        """Check beforehand all that would keep the guest from running here."""
        if self._is_here():
            raise FileExistsError(f"there is a guest {self._incoming!r} here already")
        taken = self._domid_of(self._name)
        if taken is not None and not self._is_the_guest(taken):
            raise FileExistsError(f"there is another guest {self._name!r} here already")
        problem = descriptors.why_not() or await blocking.call(
            self._ctx.limits.callback, self._objection
        )
        if problem:
            self._fail(Error.FAIL, problem)
            return Event.FAILED
        self._journal = Journal.begin(
            self._ctx.host.state_dir,
            self._name,
            Role.DESTINATION,
            domid=None,
            domain_name=self._incoming,
            peer=self._peer,
            uuid=uuid_of(self._config),
        )
        return Event.OK

    def _objection(self) -> str:
        """Why this host cannot take the guest; "" if nothing is known to keep it from that."""
        host = self._ctx.host
        if problem := host.why_not_create(self._config):
            return f"the domain {self._incoming} cannot be created: {problem}"
        if self._flags & xl_header.OPTIONAL_SPARSE and (problem := beyond_sparse(self._ctx)):
            return problem
        if not self._flags & (xl_header.OPTIONAL_POSTCOPY | xl_header.OPTIONAL_LINK):
            return ""
        if self._leave_paused and self._flags & xl_header.OPTIONAL_POSTCOPY:
            return "a guest that comes by postcopy runs at once and cannot stay paused"
        return host.why_no_postcopy()

    async def _say_verdict(self, verdict: Verdict) -> Event:
        """Send a verdict, if asked for: to another sender, such as xl, it would be a wrong
        message."""
        if self._flags & xl_header.OPTIONAL_VERDICT:
            message = xl_handshake.VERDICT
            await self._link.say(message, xl_handshake.encode_verdict(verdict))
        return Event.OK

    async def _refuse(self) -> Event:
        event = await self._say_verdict(
            Verdict(self._failures.rc or Error.FAIL, self._failures.reason)
        )
        self._told = bool(self._flags & xl_header.OPTIONAL_VERDICT)
        return event

    def _is_the_guest(self, domid: int) -> bool:
        """Whether a domain is the guest that is being sent, within one host; True as well if that
        cannot be told, since xl accepts it then."""
        ours, theirs = (
            config.get("c_info", {}).get("uuid")
            for config in (self._config, self._ctx.host.config(domid))
        )
        return ours is None or ours == theirs

    @property
    def _may_be_postcopy(self) -> bool:
        """On Xen `xl` makes the domain in another way if it comes by postcopy: only who has
        announced it may do so. Elsewhere the stream shows it."""
        return self._ctx.hypervisor != XEN or bool(self._flags & xl_header.OPTIONAL_POSTCOPY)

    async def _run_stream(self) -> Event:
        result = await restore_domain(
            self._ctx,
            restore_parameters(
                self._config,
                self._incoming,
                self._stream_fd,
                self._back_fd if self._may_be_postcopy else -1,
                link=bool(self._flags & xl_header.OPTIONAL_LINK),
                on_resume=self._resumes,
                receiving=self._say_receiving if self._is_heard else None,
            ),
        )
        self._domid = result.domid
        if result.rc:
            self._fail(result.rc, result.reason, result.why)
            return Event.FAILED
        if result.postcopy_resumed:
            self._started()
            return Event.RESUMED
        return Event.OK

    @property
    def _is_heard(self) -> bool:
        return bool(self._flags & xl_header.OPTIONAL_RECEIVING)

    async def _say_receiving(self) -> None:
        await self._link.say(xl_handshake.RECEIVING)

    async def _read_go(self) -> Event:
        await self._link.hear(xl_handshake.GO)
        self._promise(Promise.GO_RECEIVED)
        return Event.OK

    async def _rename(self) -> Event:
        await self._aside(self._ctx.host.rename, self._made(), self._name)
        return Event.OK

    async def _rename_resumed(self) -> Event:
        try:
            return await self._rename()
        except FileExistsError as error:
            raise FileExistsError(
                f"the guest runs here as {self._incoming!r}, since there is another {self._name!r}:"
                f" `xen-toolstack rename {self._incoming} NEW` gives it a new name, `recover "
                f"{self._name}` its own one once that is free"
            ) from error

    async def _unpause(self) -> Event:
        if not self._leave_paused:
            await self._aside(self._ctx.host.unpause, self._made())
        self._started()
        return Event.OK

    async def _report_failed(self) -> Event:
        # From here on our copy is given up, under the name that `recover` knows it by. A copy that
        # somebody else has destroyed needs no name.
        with contextlib.suppress(ProcessLookupError):
            await self._aside(self._ctx.host.rename, self._made(), self._incoming)
        self._promise(Promise.RECEIVING)
        code = bytes([-self._failures.rc & 0xFF or 0xFF])
        return await self._report(code)

    async def _destroy(self) -> Event:
        if self._domid is not None:
            with contextlib.suppress(ProcessLookupError):
                await self._aside(self._ctx.host.destroy, self._domid)
            page_server.forget_pager(self._ctx.host.control_dir, self._domid)
            self._domid = None
        return Event.OK

    def _resumes(self) -> None:
        self._promise(Promise.RESUMED)
        self._beyond = True

    def _started(self) -> None:
        """Note that the guest runs. A journal that cannot be written does not take that back: its
        last promise lets `recover` find out."""
        try:
            self._promise(Promise.STARTED)
        except OSError as error:
            self._fail(0, f"journal: {message_of(error)}", why(error))

    def _made(self) -> int:
        assert self._domid is not None, "a domain is made before it is started"
        return self._domid

    def _promise(self, promise: Promise) -> None:
        assert self._journal is not None, "the journal begins with the configuration"
        self._journal.promise(promise)


async def read_config(fd: int, limit: float) -> tuple[dict[str, Any], int]:
    """Read the xl header; returns the configuration in it and its optional flags.

    Raises DecodeError for anything else, LinkError if it ends early or does not come.
    """
    header = await link.read_exactly(fd, xl_header.HEADER_SIZE, limit, "the xl header")
    decoded = xl_header.decode_header(header)
    data = await link.read_exactly(
        fd, decoded.optional_data_len, limit, "the configuration in the xl header"
    )
    text = xl_header.decode_optional_data(decoded, data)
    return parse_config(text), decoded.optional_flags


def parse_config(text: bytes) -> dict[str, Any]:
    """Decode the configuration that `Host.config` gave. Raises DecodeError unless it is JSON."""
    if not text:
        raise DecodeError("xl configuration", xl_header.HEADER_SIZE, "is empty, want JSON")
    try:
        config = json.loads(text.rstrip(b"\0"))
    except (ValueError, RecursionError) as error:
        raise DecodeError("xl configuration", xl_header.HEADER_SIZE + 4, str(error)) from error
    if not isinstance(config, dict):
        raise DecodeError("xl configuration", xl_header.HEADER_SIZE + 4, "want a JSON object")
    return config


def name_of(config: dict[str, Any]) -> str:
    """The guest's name, `c_info.name` of libxl_domain_config. Raises DecodeError without one."""
    c_info = config.get("c_info")
    name = c_info.get("name") if isinstance(c_info, dict) else None
    if not isinstance(name, str) or not name:
        raise DecodeError("xl configuration", xl_header.HEADER_SIZE + 4, "has no c_info.name")
    return name


def uuid_of(config: dict[str, Any]) -> str | None:
    """`c_info.uuid` in lower case, None if it is missing."""
    uuid = config["c_info"].get("uuid")
    return uuid.lower() if isinstance(uuid, str) else None
