"""A process that writes (or reads) a stream under an `Abort` until that stops it.

    python -m tests.helper.engine.stuck_stream HOW FD LIFELINE STALL_LIMIT ADMISSION

HOW is `write`, `write-much` (each write takes long), `read`, `read-much` (as the engine reads the
contents of a record), `libc` (write as libxc does: in C, retried if interrupted) or `idle` (writes
once, then has nothing to write). It prints `ready` when
it is about to start, and at its end one JSON line: the Abort's reason, and the result of the system
call.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import sys

from xen_save_helper.helper.abort import SAVE_SIGNALS, Abort
from xen_save_helper.helper.engine.stream_io import StreamInput
from xen_save_helper.helper.libxenguest.thread_meter import ThreadMeter

BLOCK = b"x" * 65536


def write_for_ever(fd: int, abort: Abort) -> None:
    while True:
        os.write(fd, BLOCK)
        abort.progress()


def write_much_at_once(fd: int, abort: Abort) -> None:
    while True:
        os.write(fd, BLOCK * 256)
        abort.progress()


def read_for_ever(fd: int, abort: Abort) -> None:
    while os.read(fd, 65536):
        abort.progress()


def read_much_at_once(fd: int, abort: Abort) -> None:
    views = [memoryview(bytearray(256 * len(BLOCK)))]
    stream = StreamInput(fd, abort)
    while True:
        stream.readinto(views, "contents")


def write_with_libc(fd: int, abort: Abort) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    while True:
        if libc.write(fd, BLOCK, len(BLOCK)) >= 0:
            abort.progress()
        elif ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), "write in libc")


def write_once(fd: int, abort: Abort) -> None:
    os.write(fd, b"x")
    abort.idle()
    select.select([abort], [], [])
    abort.check()


HOW = {
    "write": write_for_ever,
    "write-much": write_much_at_once,
    "read": read_for_ever,
    "read-much": read_much_at_once,
    "libc": write_with_libc,
    "idle": write_once,
}


def main() -> None:
    how, fd, lifeline, stall, admission = sys.argv[1:]
    reading = how.startswith("read")
    signals = frozenset() if reading else SAVE_SIGNALS
    meter = ThreadMeter(reading=False) if float(admission) else None
    limits = {"stall_limit": float(stall), "admission": float(admission)}
    with Abort(lifeline=int(lifeline), signals=signals, **limits) as abort:
        print("ready", flush=True)
        failure = 0
        try:
            abort.guard_stream(int(fd), reading=reading, moved=meter.moved if meter else None)
            HOW[how](int(fd), abort)
        except OSError as error:
            failure = error.errno or 0
        abort.release_stream()
        result = {
            "failure": errno.errorcode.get(failure, ""),
            "errnoval": errno.errorcode.get(abort.errnoval, ""),
            "reason": abort.reason,
            "lost": abort.lost,
            "fileno_ready": bool(select.select([abort], [], [], 0)[0]),
        }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
