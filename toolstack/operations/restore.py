"""One restore: carries out what the stream reader, the join and the postcopy join decide.

libxl_create.c and the asynchronous part of libxl_stream_read.c.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xen_save_helper.ipc_schema.causes import SYSTEM, Cause, Why, why
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.errors import DecodeError, Error
from xen_save_helper.ipc_schema.streams import libxl_stream, records
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.toolstack.aio import blocking
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers import page_server
from xen_save_helper.toolstack.helpers.request import HelperResult, Statistics
from xen_save_helper.toolstack.hosts.interface import RestoredGfns
from xen_save_helper.toolstack.operations.stream_operation import (
    StreamOperation,
    Word,
    has_device_model,
    rc_of,
)
from xen_save_helper.toolstack.rules import postcopy_join, stream, stream_read
from xen_save_helper.toolstack.rules.join import Task
from xen_save_helper.toolstack.rules.postcopy_join import PostcopyAction, PostcopyJoin
from xen_save_helper.toolstack.rules.stream_read import ReaderAction, StreamReader


@dataclass(frozen=True)
class RestoreResult:
    """How a restore ended.

    `rc` is `Error.OK` (0) or libxl's error code, `reason` a line for people ("" on success).
    `domid` is the new domain, None if there is none (any more). `postcopy_resumed` says whether the
    domain was let run after a postcopy transition; it may have run even if `rc` is not 0. `why`
    is the cause of a failure.
    """

    rc: Error
    domid: int | None
    postcopy_resumed: bool
    statistics: Statistics | None
    reason: str
    why: Why = SYSTEM


@dataclass(frozen=True)
class RestoreParameters:
    """What to restore, and from where; see `domain_create_restore`."""

    config: Mapping[str, Any]
    name: str
    restore_fd: int
    send_back_fd: int
    on_resume: Callable[[], None]
    """Records the point of no return (`rules.stream.PointOfNoReturn`). If it raises, the domain
    does not run."""
    link: bool = False
    receiving: Word | None = None


class RestoreOperation(StreamOperation[ReaderAction, RestoreResult]):
    """A restore. `cancel` comes too late once all of the stream is there and a domain is about to
    run after its postcopy transition: the source has given it away."""

    def __init__(self, ctx: Context, parameters: RestoreParameters) -> None:
        self._reader = StreamReader(device_model=has_device_model(parameters.config))
        super().__init__(ctx, None, "restore", self._reader)
        self._parameters = parameters
        self._domid: int | None = None
        self._postcopy: PostcopyJoin | None = None
        self._read: asyncio.Task[None] | None = None
        self._xenstore: list[tuple[bytes, bytes]] = []
        self._context: bytes | None = None
        self._gfns = RestoredGfns()
        self._offset = 0
        """Our place in the libxl stream: bytes that we read, and those that the helper reports."""
        self._body = 0
        """The offset of the last record's body."""
        self._untold = False
        """Whether the helper has read bytes without saying how many."""
        self._resumed = False
        self._has_all = False
        """Whether the helper has put every page of the domain in place."""

    async def _run(self) -> RestoreResult:
        rc = await self._create()
        if not rc:
            rc = await self._restore()
        if rc and self._domid is not None:
            await self._destroy(self._domid)
        self._report.event(
            "restore_ended", rc=rc, postcopy_resumed=self._resumed, **self._report.cause(rc)
        )
        if self._fault is not None:
            raise self._fault
        return RestoreResult(
            Error(rc),
            self._domid,
            self._resumed,
            self._report.statistics,
            self._report.reason if rc else "",
            self._report.why,
        )

    async def _create(self) -> int:
        parameters = self._parameters
        try:
            self._domid = self._report.domid = await blocking.call(
                self._ctx.limits.callback, self._ctx.host.create, parameters.config, parameters.name
            )
        except (OSError, ValueError) as error:
            text = f"the domain {parameters.name} cannot be created: {error}"
            self._report.failed(text, why(error))
            return Error.INVAL if isinstance(error, ValueError | FileExistsError) else rc_of(error)
        self._report.event("domain_created", name=parameters.name)
        if self._ctx.control is not None:
            self._ctx.control.steering.has_domid(self._domid)
        return 0

    async def _restore(self) -> int:
        if not self._cancelled:
            self._join.started(Task.STREAM)
            self._do(self._reader.start())
            rc = await self._completed
            if rc:
                self._give_up_word()
            await self._tasks_ended()
            if rc or self._postcopy is not None:
                return rc
            rc = await self._rebuild_done()
            if rc or not self._cancelled:
                return rc
        self._report.failed("the restore was cancelled", Why(Cause.ABORTED))
        return Error.ABORTED

    async def _rebuild_done(self) -> int:
        assert self._domid is not None
        if has_device_model(self._parameters.config) and self._context is None:
            # libxl__build_device_model_args: QEMU starts from a saved state, or not at all.
            self._report.failed(
                "the stream has no state of the device model (EMULATOR_CONTEXT)", Why(Cause.INVALID)
            )
            return Error.FAIL
        return await self._host_call(
            "the domain's devices cannot be restored",
            self._host_limit,
            self._ctx.host.rebuild_done,
            self._domid,
            self._gfns,
            self._xenstore,
            self._context,
        )

    @property
    def _host_limit(self) -> float:
        """The seconds that making the domain run may take; 0, for no limit, if a limit would lose
        the domain."""
        return self._ctx.limits.callback if self._postcopy is None else 0.0

    async def _destroy(self, domid: int) -> None:
        try:
            await blocking.call(self._ctx.limits.callback, self._ctx.host.destroy, domid)
        except ProcessLookupError:
            pass
        except OSError as error:
            self._report.failed(f"the domain cannot be destroyed: {error}", why(error))
            return
        page_server.forget_pager(self._ctx.host.control_dir, domid)
        self._domid = None

    # What the rules decide

    @property
    def _is_whole(self) -> bool:
        return self._has_all and self._postcopy is not None

    def _joined(self, rc: int) -> None:
        if self._postcopy is None:
            self._completed.set_result(rc)
        else:
            self._do_postcopy(self._postcopy, self._postcopy.stream_done(rc))

    def _do_postcopy(self, ends: PostcopyJoin, actions: tuple[PostcopyAction, ...]) -> None:
        for action in actions:
            match action:
                case postcopy_join.RestoreDeviceModel():
                    self._spawn(self._resume_emulator(ends))
                case stream.PointOfNoReturn():
                    failure = "the domain cannot be let run"
                    rc = self._promise(self._parameters.on_resume, failure)
                    self._do_postcopy(ends, ends.promised(rc))
                case postcopy_join.Unpause():
                    self._spawn(self._unpause(ends))
                case postcopy_join.Resumed(rc):
                    self._report.event("postcopy_resume_done", rc=rc)
                case postcopy_join.AbortStream(rc):
                    self._do_join(self._join.fail(rc))
                case postcopy_join.RestoreDone(rc):
                    # The join has a failure before the stream that it aborts has stopped.
                    self._completed.set_result(self._join.rc or rc)

    def _do(self, actions: tuple[ReaderAction, ...]) -> None:
        for action in actions:
            match action:
                case stream_read.ReadHeader():
                    self._read = self._spawn(self._read_header())
                case stream_read.ReadRecord():
                    self._read = self._spawn(self._read_record())
                case stream_read.CancelRead():
                    if self._read is not None:
                        self._read.cancel()
                case stream_read.Keep(record, body):
                    self._keep(record, body)
                case stream.StartHelper():
                    self._start_helper()
                case stream.PostcopyTransitionCallback(rc):
                    self._postcopy_transition_done(rc)
                case stream_read.Log(problem):
                    place = self._body - records.HEADER_SIZE
                    what = f"record at offset {place:#x}: {problem}"
                    self._stream_failed("libxl stream", what, Why(Cause.INVALID))
                case stream.Stopped(rc):
                    self._stream_stopped(rc)
                case stream_read.AnswerCheckpoint() | stream_read.CheckpointStateCallback():
                    raise RuntimeError("a plain stream has no checkpoints")

    # Reading

    async def _read_bytes(self, size: int, what: str) -> bytes:
        limit = self._ctx.limits.stream_stall
        data = await self._ctx.seams.stream.read_exactly(
            self._parameters.restore_fd, size, limit=limit, what=what
        )
        self._offset += len(data)
        return data

    async def _read_header(self) -> None:
        try:
            data = await self._read_bytes(libxl_stream.HEADER_SIZE, "libxl stream header")
            libxl_stream.decode_header(data)
        except (OSError, EOFError, ValueError) as error:
            self._read_failed(error)
            return
        self._do(self._reader.header_done())

    async def _read_record(self) -> None:
        what = "libxl record"
        offset = self._offset
        self._body = offset + records.HEADER_SIZE
        try:
            header = await self._read_bytes(records.HEADER_SIZE, f"{what} header")
            number, length = records.decode_record_header(header, what, offset)
            kind = libxl_stream.record_type(number, offset)
            if kind is not None:
                libxl_stream.check_length(kind, length, offset)
                what = kind.name
            padded = length + records.padding(length)
            body = await self._read_bytes(padded, what)
            records.check_padding(body[length:], what, self._body + length)
        except (OSError, EOFError, ValueError) as error:
            self._read_failed(error)
            return
        self._report.event("stream_read", record=number if kind is None else kind.name)
        self._do(self._reader.record_done(number, body[:length]))

    def _read_failed(self, error: Exception) -> None:
        self._stream_failed("reading the stream", error, why(error))
        self._do(self._reader.read_failed(rc_of(error)))

    def _stream_failed(self, what: str, problem: object, why: Why) -> None:
        uncounted = " (libxc's bytes are not counted)" if self._untold else ""
        self._report.failed(f"{what}{uncounted}: {problem}", why)

    def _keep(self, record: RecordType, body: bytes) -> None:
        rc = 0
        try:
            if record is RecordType.EMULATOR_XENSTORE_DATA:
                self._keep_xenstore(body)
            else:
                _, _, self._context = libxl_stream.decode_emulator_context(body, self._body)
        except ValueError as error:
            self._stream_failed(record.name, error, why(error))
            rc = Error.FAIL
        self._do(self._reader.processed(rc))

    def _keep_xenstore(self, body: bytes) -> None:
        _, _, entries = libxl_stream.decode_emulator_xenstore_data(body, self._body)
        for path, _ in entries:
            # libxl__restore_emulator_xenstore_data: it would be outside the domain's own path.
            if not path or path.startswith(b"/") or b".." in path.split(b"/"):
                raise DecodeError(
                    "libxl EMULATOR_XENSTORE_DATA", self._body, f"the path {path[:100]!r}"
                )
        self._xenstore = entries

    # The helper and its callbacks

    def _start_helper(self) -> None:
        assert self._domid is not None
        self._untold = True
        parameters = self._parameters
        request = HelperRequest(
            Operation.RESTORE,
            self._domid,
            parameters.restore_fd,
            back_fd=parameters.send_back_fd,
            **self._ctx.host.rings(self._domid)._asdict(),
            hypervisor=self._ctx.hypervisor,
            engine=self._ctx.engine,
            postcopy=parameters.send_back_fd >= 0,
            missing_cpu_features=self._ctx.missing_cpu_features,
            control=str(self._ctx.host.control_dir) if parameters.link else "",
        )
        callbacks: dict[str, Callable[..., int | None]] = {
            "static_data_done": self._on_static_data_done,
            "restore_results": self._on_restore_results,
        }
        if request.postcopy:
            callbacks["postcopy_transition"] = self._on_postcopy_transition
        self._run_helper(request, callbacks)

    def _on_static_data_done(self, missing: int) -> int:
        assert self._domid is not None
        self._report.event("static_data_done", missing=missing)
        try:
            left = self._ctx.host.static_data_done(self._domid, missing)
        except (OSError, ValueError) as error:
            self._report.failed(f"the domain's static data: {error}", why(error))
            return -1
        self._spawn(self._say_receiving())
        return left

    async def _say_receiving(self) -> None:
        await self._passes(self._parameters.receiving)

    def _on_restore_results(self, store_gfn: int, console_gfn: int) -> None:
        self._gfns = RestoredGfns(store_gfn, console_gfn)
        self._report.event("restore_results", **self._gfns._asdict())

    def _helper_done(self, result: HelperResult) -> None:
        self._has_all = result.completed and not result.retval
        rc = 0 if self._is_whole else result.rc
        if not rc and not self._has_all:
            rc = Error.FAIL
        self._report.helper_ended(result, rc, "restoring the domain", "restored")
        if result.statistics is not None:
            self._offset += result.statistics.bytes
            self._untold = False
        self._helper_stopped(rc)

    def _on_postcopy_transition(self) -> None:
        self._past_return()
        super()._on_postcopy_transition()

    def _postcopy_transition_done(self, rc: int) -> None:
        """domcreate_postcopy_transition_complete_callback."""
        self._report.event("postcopy_transition_done", rc=rc)
        if not rc:
            self._postcopy = PostcopyJoin()
        self._answer("postcopy_transition", 0 if rc else 1)
        if self._postcopy is not None:
            self._do_postcopy(self._postcopy, self._postcopy.transitioned())

    async def _resume_emulator(self, ends: PostcopyJoin) -> None:
        rc: int = Error.FAIL
        try:
            rc = await self._rebuild_done()
        finally:
            self._do_postcopy(ends, ends.device_model_done(rc))

    async def _unpause(self, ends: PostcopyJoin) -> None:
        """Let the domain run while its memory comes in."""
        self._resumed = True
        rc: int = Error.FAIL
        try:
            rc = await self._host_call(
                "the domain cannot be unpaused",
                self._host_limit,
                self._ctx.host.unpause,
                self._domid,
            )
        finally:
            self._do_postcopy(ends, ends.unpaused(rc))
