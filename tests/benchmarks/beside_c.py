"""C's save helper, Debian's own binary, and ours at the same work: on the stand-in for the
hypervisor, as libxl starts them, with a socket as the stream.

Both are libxl's helper of Xen 4.17 and have its default policy: a live save has five rounds and a
last one.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tests.benchmarks import limits
from tests.benchmarks.throughput import WARM_UP, anonymous_memory
from tests.debian_packages import unpacked
from tests.helper.libxl_side import Libxl, cbflags, started
from tests.hypercalls.build import built
from tests.hypercalls.helpers import answered, guest
from tests.hypercalls.machine import PAGE, SPECIAL_PFNS, Domain, Machine
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, XCFlags

RELEASE: Final = "4.17"
REWRITTEN: Final = 10
"""One page of so many is dirty after each round."""

_OURS: Final = Path(sys.executable).with_name("xen-save-helper")
_SOURCE: Final = 1
_DESTINATION: Final = 2
_VGA: Final = range(0xA0, 0x100)
"""No RAM."""
_FILLED_AT_ONCE: Final = 1 << 14
_REPORT: Final = struct.Struct("<Qd")
_SAMPLED_EVERY: Final = 0.001


class Side(Enum):
    C = "C"
    OURS = "ours"


@dataclass(frozen=True)
class Run:
    """One helper's work, in seconds and bytes."""

    transferred: int
    """Bytes of the stream after the warm-up, which took `seconds`."""
    seconds: float
    whole: float
    """From the start of the process to its exit."""
    processor: float
    """Of the process, in the kernel too."""
    private: int
    """The most anonymous memory it was seen to have: 0 unless it was watched."""

    @property
    def rate(self) -> float:
        return self.transferred / self.seconds

    @property
    def gib(self) -> float:
        return self.transferred / (1 << 30)


class Bench:
    """A machine with a running guest of `memory` bytes, none of whose pages is of zeros."""

    def __init__(self, directory: Path, memory: int) -> None:
        helper = unpacked(f"xen-utils-{RELEASE}")
        self._helper = helper / f"usr/lib/xen-{RELEASE}/bin/libxl-save-helper"
        self._release = built(directory / RELEASE, RELEASE)
        (directory / "machine").mkdir()
        self._machine = Machine(directory / "machine", RELEASE)
        self._memory = memory
        self._stream = directory / "stream"
        self._source = guest(self._machine, _SOURCE, list(_ram(memory // PAGE)))
        self._source.keep_writing(REWRITTEN)
        self._restored_before = False

    def save(self, side: Side, *, live: bool = False, watch: bool = False) -> Run:
        """Save the guest into a socket that is drained. It runs again afterwards."""
        near, far = socket.socketpair()
        request = HelperRequest(
            Operation.SAVE, _SOURCE, near.fileno(), xcflags=XCFlags.LIVE if live else 0
        )

        def suspend(_fields: object) -> int:
            self._source.suspend()
            return 1

        def work(libxl: Libxl) -> tuple[int, float]:
            near.close()
            done = answered(libxl, suspend=suspend, switch_qemu_logdirty=lambda _fields: 0)
            _succeeded(done.result, done.logged)
            transferred, seconds = _REPORT.unpack(os.read(report_read, _REPORT.size))
            return transferred, seconds

        report_read, report_write = os.pipe()

        def peer() -> None:
            near.close()
            _timed_drain(far, report_write)

        with limits.child(peer):
            far.close()
            try:
                return self._measured(
                    side, request, ("suspend", "switch_qemu_logdirty"), work, watch
                )
            finally:
                near.close()
                os.close(report_read)
                os.close(report_write)
                self._source.resume()

    def save_to_file(self) -> None:
        """The stream for `restore`."""
        with self._stream.open("wb") as stream:
            request = HelperRequest(Operation.SAVE, _SOURCE, stream.fileno())

            def work(libxl: Libxl) -> tuple[int, float]:
                self._source.suspend()
                done = answered(libxl, suspend=lambda _f: 1, switch_qemu_logdirty=lambda _f: 0)
                _succeeded(done.result, done.logged)
                return 0, 1.0

            self._measured(Side.C, request, ("suspend", "switch_qemu_logdirty"), work, False)
        self._source.resume()

    def restore(self, side: Side, *, watch: bool = False) -> Run:
        """Restore what `save_to_file` has saved through a socket. The clock ends when the helper
        says that it is complete."""
        self._new_destination()
        near, far = socket.socketpair()
        request = HelperRequest(
            Operation.RESTORE, _DESTINATION, near.fileno(), store_evtchn=11, console_evtchn=13
        )
        report_read, report_write = os.pipe()

        def work(libxl: Libxl) -> tuple[int, float]:
            near.close()
            done = answered(libxl, restore_results=lambda _fields: None)
            ended = time.perf_counter()
            _succeeded(done.result, done.logged)
            fed, began = _REPORT.unpack(os.read(report_read, _REPORT.size))
            return fed, ended - began

        def peer() -> None:
            near.close()
            _feed(far, self._stream, report_write)

        with limits.child(peer):
            far.close()
            try:
                return self._measured(side, request, ("restore_results",), work, watch)
            finally:
                near.close()
                os.close(report_read)
                os.close(report_write)

    def _new_destination(self) -> Domain:
        """In memory that is there already: on Xen it is the hypervisor's, and none of a helper's
        time goes into its first touch."""
        made = self._machine.domain(_DESTINATION, garbage=False, used=self._restored_before)
        if not self._restored_before:
            self._restored_before = True
            for pfns in _ram(self._memory // PAGE):
                made.memory[pfns.start : pfns.stop] = 1
        return made

    def _measured(
        self,
        side: Side,
        request: HelperRequest,
        callbacks: Sequence[str],
        work: Callable[[Libxl], tuple[int, float]],
        watch: bool,
    ) -> Run:
        dialect = Dialect.MAINLINE
        arguments = HelperArguments(request, dialect, cbflags(dialect, *callbacks))
        # Copies would count as the helper's own memory.
        self._machine.state.copies = not watch
        before = _children_seconds()
        began = time.perf_counter()
        with started(
            arguments,
            command=[str(self._helper if side is Side.C else _OURS)],
            XEN_SAVE_HELPER_ENGINE="own",
            **self._release.environment,
            **self._machine.environment,
        ) as libxl:
            pid = libxl.process.pid
            with _watched(pid if watch else None) as most:
                transferred, seconds = work(libxl)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            whole = time.perf_counter() - began
            assert libxl.process.wait() == 0, libxl.errors()
            processor = _children_seconds() - before
        return Run(transferred, seconds, whole, processor, most[0])


@contextmanager
def bench(memory: int) -> Iterator[Bench]:
    """Raises PackageUnavailableError where Debian's packages cannot be had."""
    directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        yield Bench(directory, memory)
    finally:
        shutil.rmtree(directory)


def _ram(pages: int) -> Iterator[range]:
    """As libxl builds a PVH guest: from 0 on, with a hole for the VGA, in parts that are not too
    large to be filled at once. Two pages less, which are its rings."""
    end = pages - 2 + len(_VGA)
    if end > SPECIAL_PFNS:
        raise ValueError(f"a guest of {pages} pages does not fit below 4 GiB")
    yield range(_VGA.start)
    for start in range(_VGA.stop, end, _FILLED_AT_ONCE):
        yield range(start, min(start + _FILLED_AT_ONCE, end))


def _succeeded(result: tuple[int, int], logged: Sequence[str]) -> None:
    if result != (0, 0):
        raise RuntimeError(f"the helper ended with {result}: {logged}")


def _children_seconds() -> float:
    """Of those that have been waited for; the peers are waited for later than the helpers."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _watched(pid: int | None) -> Iterator[list[int]]:
    """The most anonymous memory that a process is seen to have meanwhile."""
    most = [0]
    if pid is None:
        yield most
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLED_EVERY):
            most[0] = max(most[0], anonymous_memory(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def _timed_drain(sock: socket.socket, report: int) -> None:
    """Reports how many bytes came after the warm-up, and in how many seconds the last of them."""
    buffer = bytearray(1 << 20)
    total = before = 0
    started = last = 0.0
    while got := sock.recv_into(buffer):
        total += got
        last = time.perf_counter()
        if not started and total >= WARM_UP:
            started, before = last, total
    os.write(report, _REPORT.pack(total - before, last - started))


def _feed(sock: socket.socket, file: Path, report: int) -> None:
    """Reports how many bytes went after the warm-up, and since when."""
    started = 0.0
    total = before = 0
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        while total < size:
            total += os.sendfile(sock.fileno(), stream.fileno(), total, limits.CHUNK)
            if not started and total >= WARM_UP:
                started, before = time.perf_counter(), total
    os.write(report, _REPORT.pack(total - before, started))
