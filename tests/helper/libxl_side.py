"""The helper as libxl starts it: libxl's ends of the pipes."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments, build
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, Dialect, Operation, callback_bit
from xen_save_helper.ipc_schema.channel.pipe_codec import HEADER_SIZE, decode_body, decode_header

HELPER = [sys.executable, "-P", "-m", "xen_save_helper.helper.main"]


@dataclass
class Libxl:
    """The pipes to a helper started as libxl starts it."""

    process: subprocess.Popen[bytes]
    dialect: Dialect
    operation: Operation

    def hear(self) -> tuple[str, dict[str, Any]]:
        """The next message that is not a log or progress line."""
        while True:
            name, fields = self.hear_any()
            if name not in ("log", "progress"):
                return name, fields

    def hear_any(self) -> tuple[str, dict[str, Any]]:
        assert self.process.stdout is not None
        header = self.process.stdout.read(HEADER_SIZE)
        body = self.process.stdout.read(decode_header(header))
        message, fields = decode_body(self.dialect, self.operation, body)
        return message.name, fields

    def hear_logs(self) -> tuple[list[dict[str, Any]], tuple[str, dict[str, Any]]]:
        """The log lines up to the next message that is not a log or progress line, and that one."""
        lines = []
        while True:
            name, fields = self.hear_any()
            if name == "log":
                lines.append(fields)
            elif name != "progress":
                return lines, (name, fields)

    def answer(self, value: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(struct.pack("=i", value))
        self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def exit_status(self) -> int:
        return self.process.wait(10)

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@contextmanager
def started(
    arguments: HelperArguments,
    hypervisor: str = "xen",
    *options: str,
    loader: Sequence[str] = (),
    command: Sequence[str] = HELPER,
    **environment: str,
) -> Iterator[Libxl]:
    """Start the helper, or another one by its `command`. `options` are Python's own."""
    process = subprocess.Popen(
        [*loader, *command[:2], *options, *command[2:], *build(arguments)],
        env={**os.environ, "XEN_SAVE_HELPER_HYPERVISOR": hypervisor, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[arguments.request.io_fd] if is_open(arguments.request.io_fd) else [],
    )
    try:
        yield Libxl(process, arguments.dialect, arguments.request.operation)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def cbflags(dialect: Dialect, *names: str) -> int:
    return sum(callback_bit(CATALOGUE[name], dialect) for name in names)


def save_of(
    fd: int, domid: int, dialect: Dialect = Dialect.MAINLINE, **fields: Any
) -> HelperArguments:
    flags = cbflags(dialect, "suspend", "switch_qemu_logdirty")
    request = HelperRequest(Operation.SAVE, domid, fd, **fields)
    return HelperArguments(request, dialect, flags)


def restore_of(fd: int, domid: int, dialect: Dialect = Dialect.MAINLINE) -> HelperArguments:
    flags = cbflags(dialect, "restore_results")
    return HelperArguments(HelperRequest(Operation.RESTORE, domid, fd), dialect, flags)
