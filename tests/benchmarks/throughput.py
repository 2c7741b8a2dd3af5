"""A save into a socket and a restore from one, for comparison with plain loops over the same
bytes."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks import limits
from xen_save_helper.ipc_schema.channel.messages import XCFlags
from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.operations.domain_restore import domain_create_restore
from xen_save_helper.toolstack.operations.domain_save import domain_suspend
from xen_save_helper.toolstack.xl.controlled import controlled

WARM_UP = 4 << 20
"""Bytes of a stream before the clock starts: by then the helper is up and at its pages."""


@dataclass(frozen=True)
class Measured:
    """Bytes after the warm-up, the seconds that they took, and the helper's largest RssAnon in
    bytes, 0 if it was not watched, which takes time of its own."""

    size: int
    seconds: float
    helper_memory: int

    @property
    def rate(self) -> float:
        return self.size / self.seconds


def _report(fd: int, size: int, seconds: float) -> None:
    os.write(fd, struct.pack("<Qd", size, seconds))


def _timed_drain(sock: socket.socket, report: int) -> None:
    buffer = bytearray(1 << 20)
    total = 0
    started = 0.0
    while got := sock.recv_into(buffer):
        total += got
        if not started and total >= WARM_UP:
            started, before = time.perf_counter(), total
    _report(report, total - before, time.perf_counter() - started)


def _timed_feed(sock: socket.socket, file: Path, report: int) -> None:
    started = 0.0
    total = before = 0
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        while total < size:
            total += os.sendfile(sock.fileno(), stream.fileno(), total, limits.CHUNK)
            if not started and total >= WARM_UP:
                started, before = time.perf_counter(), total
    select.select([sock], [], [])  # the other side hangs up when it has read all
    _report(report, total - before, time.perf_counter() - started)


def anonymous_memory(pid: int) -> int:
    """RssAnon of a process in bytes, 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _helper_of_this_process() -> int | None:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"--connect" in command:
            return int(child)
    return None


async def _watch_memory(most: list[int]) -> None:
    while True:
        pid = _helper_of_this_process()
        if pid is not None:
            most[0] = max(most[0], anonymous_memory(pid))
        await asyncio.sleep(0.005)


def _measure(
    peer: Callable[[socket.socket, int], None],
    work: Callable[[int], Awaitable[object]],
    watch: bool,
) -> Measured:
    near, far = socket.socketpair()
    report_read, report_write = os.pipe()

    def child() -> None:
        near.close()
        peer(far, report_write)

    most = [0]

    async def watched() -> None:
        watcher = asyncio.create_task(_watch_memory(most)) if watch else None
        try:
            await work(near.fileno())
        finally:
            if watcher is not None:
                watcher.cancel()

    with limits.child(child):
        far.close()
        try:
            asyncio.run(watched())
        finally:
            near.close()  # which ends the peer
    size, seconds = struct.unpack("<Qd", os.read(report_read, 16))
    os.close(report_read)
    os.close(report_write)
    return Measured(size, seconds, most[0])


def save(
    host: SimulatedHost, domid: int, *, live: bool = False, watch: bool = False, seen: bool = False
) -> Measured:
    """Save the guest into a socket that is drained, and let it run on; `seen` through a control
    socket, as xl's operations are."""
    context = Context(host, f"sim:{host.directory}")

    async def work(fd: int) -> None:
        shown = controlled(context, Role.SAVE, "benchmark", domid) if seen else nullcontext(context)
        with shown as ctx:
            result = await domain_suspend(ctx, domid, fd, XCFlags.LIVE if live else 0)
        if result.rc:
            raise RuntimeError(f"the save failed: {result.reason}")

    try:
        return _measure(_timed_drain, work, watch)
    finally:
        host.resume(domid)


_WATCHER: Final = """
import sys, time
from pathlib import Path
from xen_save_helper.ipc_schema.control import Ask
from xen_save_helper.toolstack.helpers import control
print(flush=True)
while True:
    began = time.monotonic()
    for process in control.operations(Path(sys.argv[1])):
        try:
            control.ask(Path(sys.argv[1]), process, Ask.STATUS)
        except (OSError, control.EndedError):
            continue
    time.sleep(max(0.0, began + 0.1 - time.monotonic()))
"""


@contextmanager
def watcher(host: SimulatedHost) -> Iterator[None]:
    """A process that asks the host's operations for their status ten times a second."""
    command = [sys.executable, "-c", _WATCHER, str(host.directory / "control")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def helper_run(host: SimulatedHost, domid: int) -> float:
    """Seconds from a helper's start to its exit in a save of the guest, which runs on."""
    ended: list[float] = []

    def note(line: bytes) -> None:
        if json.loads(line)["event"] == "helper_exited":
            ended.append(time.perf_counter())

    context = Context(host, f"sim:{host.directory}", trace=Trace("controller", note))
    with open(os.devnull, "wb") as null:
        started = time.perf_counter()
        result = asyncio.run(domain_suspend(context, domid, null.fileno()))
    host.resume(domid)
    if result.rc:
        raise RuntimeError(f"the save failed: {result.reason}")
    return ended[0] - started


def save_to_file(host: SimulatedHost, domid: int, file: Path) -> None:
    """Make a stream for `restore`."""
    context = Context(host, f"sim:{host.directory}")
    with file.open("wb") as stream:
        result = asyncio.run(domain_suspend(context, domid, stream.fileno()))
    host.resume(domid)
    if result.rc:
        raise RuntimeError(f"the save failed: {result.reason}")


def restore(host: SimulatedHost, domid: int, file: Path, *, watch: bool = False) -> Measured:
    """Restore the stream in `file`, a save of `domid`, through a socket; destroy the new domain."""
    context = Context(host, f"sim:{host.directory}")
    config = host.config(domid)

    async def work(fd: int) -> None:
        result = await domain_create_restore(context, config, "benchmark--incoming", fd)
        if result.rc or result.domid is None:
            raise RuntimeError(f"the restore failed: {result.reason}")
        with socket.socket(fileno=os.dup(fd)) as near:
            near.shutdown(socket.SHUT_RDWR)
        host.destroy(result.domid)

    return _measure(lambda sock, report: _timed_feed(sock, file, report), work, watch)


def idle_memory() -> int:
    """RssAnon of a Python that has imported what a saving helper imports."""
    ours = "main", "channels.zmq_channel", "engine.save", "hypervisors.simulated.domain"
    modules = ", ".join(f"xen_save_helper.helper.{name}" for name in ours)
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import {modules}; print(flush=True); import sys; sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return anonymous_memory(process.pid)
