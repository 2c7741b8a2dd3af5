"""What the machine can do: the loops with which our own figures are compared.

Each is the plainest program for its job, so that a ratio says what our work costs on top.

A round trip between two processes costs a fifth if the scheduler happens to keep both on one
processor. To compare like with like, round trips, the limits' and our own, are measured with one
side `on` the first processor and the other on the second.
"""

from __future__ import annotations

import mmap
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

CHUNK = 4 << 20

NEAR, FAR = sorted(os.sched_getaffinity(0))[:2]
"""The processors of a round trip's two sides."""


@contextmanager
def child(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a forked process during the block; it must end by itself after that."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        _, status = os.waitpid(pid, 0)
        if status:
            raise RuntimeError(f"the benchmark's peer ended with status {status:#x}")


@contextmanager
def on(*processors: int) -> Iterator[None]:
    """Keep this thread, and the threads and processes that it starts, on `processors`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def patterned_memory(size: int) -> tuple[int, mmap.mmap]:
    """A memfd full of bytes, most of which are not zero, and its mapping."""
    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    block = bytes(range(256)) * (CHUNK // 256)
    for offset in range(0, size, CHUNK):
        memory[offset : offset + CHUNK] = block[: min(CHUNK, size - offset)]
    return fd, memory


def drain(sock: socket.socket) -> None:
    """Read and discard until the other end closes."""
    buffer = bytearray(1 << 20)
    while sock.recv_into(buffer):
        pass


def write_loop(size: int) -> float:
    """Seconds to write `size` bytes of mapped memory into a socket that is drained."""
    fd, memory = patterned_memory(size)
    near, far = socket.socketpair()
    with memory, far:

        def peer() -> None:
            near.close()
            drain(far)

        with child(peer), memoryview(memory) as view:
            far.close()
            started = time.perf_counter()
            offset = 0
            while offset < size:
                offset += os.write(near.fileno(), view[offset : offset + CHUNK])
            taken = time.perf_counter() - started
            near.close()
    os.close(fd)
    return taken


def recv_loop(size: int, memory_size: int) -> float:
    """Seconds to receive `size` bytes into `memory_size` bytes of fresh shared memory, which are
    reused if they are fewer."""
    near, far = socket.socketpair()

    def peer() -> None:
        near.close()
        block = bytes(range(256)) * (CHUNK // 256)
        sent = 0
        while sent < size:
            sent += far.send(block[: min(CHUNK, size - sent)])

    fd = os.memfd_create("benchmark")
    os.ftruncate(fd, memory_size)
    with child(peer), mmap.mmap(fd, memory_size) as memory, memoryview(memory) as view:
        far.close()
        started = time.perf_counter()
        total = 0
        while total < size:
            offset = total % memory_size
            total += near.recv_into(view[offset : offset + CHUNK])
        taken = time.perf_counter() - started
        near.close()
    os.close(fd)
    return taken


def pipe_ping_pong(rounds: int) -> list[float]:
    """Seconds of each round trip of 8 bytes over two pipes between two processes."""
    there_read, there_write = os.pipe()
    back_read, back_write = os.pipe()

    def peer() -> None:
        os.sched_setaffinity(0, {FAR})
        os.close(there_write)
        while data := os.read(there_read, 8):
            os.write(back_write, data)

    with child(peer), on(NEAR):
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            os.write(there_write, b"12345678")
            os.read(back_read, 8)
            times.append(time.perf_counter() - started)
        os.close(there_write)
    for fd in (there_read, back_read, back_write):
        os.close(fd)
    return times


def socket_ping_pong(rounds: int) -> list[float]:
    """Seconds of each such round trip over a socket pair."""
    near, far = socket.socketpair()

    def peer() -> None:
        os.sched_setaffinity(0, {FAR})
        near.close()
        while data := far.recv(8):
            far.send(data)

    with child(peer), on(NEAR):
        far.close()
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            near.send(b"12345678")
            near.recv(8)
            times.append(time.perf_counter() - started)
        near.close()
    return times


def python_start() -> float:
    """Seconds that `python -c pass` takes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - started


def stolen_seconds() -> float:
    """Seconds of processor time that the hypervisor below this machine has taken since boot: time
    that a process wanted, and that no scheduler here can account for."""
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")


class Others:
    """What processes other than this one and its children, once they are waited for, use of the
    processors from now on."""

    def __init__(self) -> None:
        self._began, self._used = time.monotonic(), _others_seconds()

    def processors(self) -> float:
        """How many of them, on average."""
        return (_others_seconds() - self._used) / (time.monotonic() - self._began)


def _others_seconds() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, file.readline().split()[1:])
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    all_ = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return all_ - sum(usage.ru_utime + usage.ru_stime for usage in own)


def percentile(values: list[float], percent: float) -> float:
    """The value that `percent` of all do not exceed."""
    if percent == 50:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
