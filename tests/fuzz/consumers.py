"""Whole streams, given to the two that make a domain of them: the controller's restore, which reads
libxl's records, and the helper's, which reads libxc's into a simulated domain."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import tempfile
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.fuzz import stream_seeds
from tests.fuzz.mutations import joined
from tests.fuzz.stream_seeds import MEMORY
from tests.fuzz.stream_targets import STREAM_WORDS, accepted
from tests.fuzz.target import DECODED, REFUSED, BrokenPromiseError, Target, promise
from tests.helper.engine.running import Controller
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.restore import domain_restore
from xen_save_helper.helper.hypervisors.simulated.domain import SimulatedDomain, open_on_host
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.helper.hypervisors.simulated.layout import P2M
from xen_save_helper.helper.job import Job, StreamCounts
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.errors import DecodeError, Error
from xen_save_helper.ipc_schema.streams import libxl_stream, records
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import HelperResult
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.operations.restore import RestoreOperation
from xen_save_helper.toolstack.operations.restore import RestoreParameters as Wanted
from xen_save_helper.toolstack.rules.join import Task

_REFUSALS: Final = frozenset({errno.EINVAL, errno.ENOMEM, errno.EOPNOTSUPP, errno.EFAULT})
"""What a hypervisor, or our engine, says of what a stream asks for: never that nothing came."""
_RENEW: Final = 400
"""Restores into one domain; it is emptied before each."""
_STALL: Final = 2.0


def targets() -> list[Target]:
    """All of this module."""
    return [_controller(), _helper()]


# The controller


class _Reading(RestoreOperation):
    """A restore from its header to the end of stream and helper. The helper ends as soon as it
    would run, well or not as chance has it, after a postcopy transition or without one: what it
    reads is none of the controller's."""

    def __init__(self, ctx: Context, parameters: Wanted, chance: Random) -> None:
        super().__init__(ctx, parameters)
        self.helpers = 0
        self._postcopy_asked = chance.random() < 0.5
        self._helper_rc = chance.choice((0, 0, 0, int(Error.FAIL)))
        self._domid = 1

    async def read(self) -> int:
        self._join.started(Task.STREAM)
        self._do(self._reader.start())
        rc = await self._completed
        await self._tasks_ended()
        if self._fault is not None:
            raise BrokenPromiseError(f"a fault of the program: {self._fault!r}")
        return rc

    @property
    def reason(self) -> str:
        return self._report.reason

    @property
    def kept(self) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """What the device model would get."""
        return self._xenstore, self._context

    def _start_helper(self) -> None:
        self.helpers += 1
        self._join.started(Task.HELPER)
        loop = asyncio.get_running_loop()
        if self._postcopy_asked:
            loop.call_soon(self._on_postcopy_transition)
        else:
            loop.call_soon(self._end_helper)

    def _end_helper(self) -> None:
        self._helper_done(HelperResult(self._helper_rc, 0, 0, "chance", None, completed=True))

    def _postcopy_transition_done(self, rc: int) -> None:
        self._report.event("postcopy_transition_done", rc=rc)
        asyncio.get_running_loop().call_soon(self._end_helper)


def _controller() -> Target:
    runner = asyncio.Runner()
    host = _Host()
    config = {"c_info": {"type": "hvm"}, "b_info": {"device_model_version": "qemu_xen"}}

    async def read(data: bytes, chance: Random) -> str:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            has_model = chance.random() < 0.8
            wanted = Wanted(config if has_model else {}, "fuzzed", far.fileno(), -1, lambda: None)
            operation = _Reading(Context(host.simulated, "sim:"), wanted, chance)
            reading = asyncio.ensure_future(operation.read())
            sending = asyncio.ensure_future(_send(near, data, chance))
            rc = await reading
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        promise(rc in (0, *Error), f"rc {rc}")
        promise(operation.helpers <= 1, f"{operation.helpers} helpers were started")
        promise(bool(operation.reason) == bool(rc), f"rc {rc}, reason {operation.reason!r}")
        if not rc:
            promise(operation.helpers == 1, "success without a helper")
            try:
                promise(_whole(data), "success, and the stream is cut")
            except DecodeError as error:
                raise BrokenPromiseError(f"success, but {error}") from error
            return DECODED
        promise(len(operation.reason) > 10, f"says little: {operation.reason!r}")
        promise(operation.reason.isprintable(), f"not printable: {operation.reason!r}")
        return REFUSED

    def feed(data: bytes, chance: Random) -> str:
        return runner.get_loop().run_until_complete(read(data, chance))

    def close() -> None:
        runner.close()
        host.close()

    seeds = [joined(*pieces) for pieces in stream_seeds.controller_streams()]
    return Target("the controller's restore", seeds, feed, 3, STREAM_WORDS, close=close)


def _whole(data: bytes) -> bool:
    """Whether libxl's records, of lengths that they may have, stand there up to END."""
    offset = libxl_stream.HEADER_SIZE
    while True:
        header = data[offset : offset + records.HEADER_SIZE]
        number, length = records.decode_record_header(header, "record", offset)
        kind = libxl_stream.record_type(number, offset)
        if kind is not None:
            libxl_stream.check_length(kind, length, offset)
        offset += records.HEADER_SIZE + length + records.padding(length)
        if kind is libxl_stream.RecordType.END:
            return offset <= len(data)


async def _send(sock: socket.socket, data: bytes, chance: Random) -> None:
    """In any pieces, and the end of the stream."""
    loop = asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        piece = chance.choice((1, 5, 8, 100, 1 << 14, 1 << 16))
        await loop.sock_sendall(sock, rest[:piece])
        rest = rest[piece:]
    sock.shutdown(socket.SHUT_WR)


# The helper


class _Host:
    """A simulated host in a directory of its own, made when it is first needed; and a domain in it
    that is new for each input."""

    def __init__(self) -> None:
        self._directory = ""
        self._domain: SimulatedDomain | None = None
        self._left = 0
        self._abort: Abort | None = None

    @cached_property
    def simulated(self) -> SimulatedHost:
        self._directory = tempfile.mkdtemp(prefix="fuzz-")
        create_host(Path(self._directory) / "host")
        return SimulatedHost(Path(self._directory) / "host")

    def abort(self) -> Abort:
        """One that nothing has asked for yet: to make one, with its thread, costs more than most
        restores."""
        if self._abort is None or self._abort.requested:
            self._end_abort()
            self._abort = Abort(signals=frozenset(), stall_limit=_STALL)
            self._abort.__enter__()
        return self._abort

    def _end_abort(self) -> None:
        if self._abort is not None:
            self._abort.__exit__(None, None, None)
            self._abort = None

    def empty_domain(self) -> SimulatedDomain:
        """Without pages; the one of before, unless that has served long enough."""
        if self._left == 0:
            self._give_up_domain()
        if self._domain is None:
            config: dict[str, Any] = {
                "c_info": {"type": "pvh", "name": "fuzzed"},
                "b_info": {"max_vcpus": 1, "max_memkb": MEMORY >> 10, "target_memkb": MEMORY >> 10},
            }
            domid = self.simulated.create(config, "fuzzed")
            self._domain = open_on_host(self.simulated.directory, domid)
            self._left = _RENEW
        self._left -= 1
        shared = self._domain.shared
        shared.p2m[: shared.domain.maximum_gpfn + 1] = P2M.ABSENT
        shared.domain.nr_pages = 0
        shared.domain.maximum_gpfn = 0
        return self._domain

    def _give_up_domain(self) -> None:
        if self._domain is not None:
            domid = self._domain.domid
            self._domain.close()
            self.simulated.destroy(domid)
            self._domain = None

    def close(self) -> None:
        self._end_abort()
        self._give_up_domain()
        if self._directory:
            shutil.rmtree(self._directory)


def _helper() -> Target:
    host = _Host()
    pieces = [stream_seeds.libxc_plain(version) for version in (2, 3)]
    pieces += [stream_seeds.libxc_postcopy(version) for version in (2, 3)] * 2
    pieces += stream_seeds.real_libxc_streams()
    seeds = [joined(*some) for some in pieces]

    def feed(data: bytes, chance: Random) -> str:
        domain = host.empty_domain()
        answers = {"static_data_done": 0, "postcopy_transition": 1}
        controller = Controller(answers)
        postcopy = chance.random() < 0.8
        stream = os.memfd_create("stream")
        back, back_far = socket.socketpair()
        try:
            with back, back_far:
                os.write(stream, data)
                os.lseek(stream, 0, os.SEEK_SET)
                request = HelperRequest(
                    Operation.RESTORE, domain.domid, stream, back.fileno(), postcopy=postcopy
                )
                abort = host.abort()
                reporter = Reporter(controller, abort, Trace("helper"))
                job = Job(request, stall_limit=_STALL)
                results = domain_restore(domain, Environment(job, reporter, abort, StreamCounts()))
                read = os.lseek(stream, 0, os.SEEK_CUR)
            promise(results.statistics.bytes == read, f"{read} octets were read, not counted")
            accepted(data[:read])
            return DECODED
        except DecodeError as error:
            promise(error.offset <= len(data), f"offset {error.offset} of {len(data)}: {error}")
            raise
        except OSError as error:
            promise(error.errno in _REFUSALS, f"{error!r}")
            promise(len(str(error)) > 20, f"says little: {error!r}")
            return "refused by the hypervisor"
        finally:
            os.close(stream)
            asked = [name for name, _ in controller.calls]
            promise(len(asked) == len(set(asked)), f"asked twice: {asked}")

    return Target("the helper's restore", seeds, feed, 3, STREAM_WORDS, close=host.close)
