"""QEMU's monitor protocol: a few commands in one short session, with a limit to each wait.

libxl has a monitor of its own for such sessions (`qmp-libxl-DOMID`). QEMU serves one client at a
time there and makes the next one wait, so ours is short, and may have to wait.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from typing import Any, Final, Self

from xen_save_helper.ipc_schema.channel.waits import Patience

TIMEOUT: Final = 10.0
"""Seconds for one command, as many as libxl gives QEMU to switch its log-dirty mode."""

MAX_MESSAGE: Final = 1 << 20
"""QMP_MAX_SIZE_RX_BUF."""

RUN_DIRECTORY: Final = "/run/xen"


def monitor_path(domid: int) -> str:
    """libxl's own monitor of the domain's device model."""
    return f"{RUN_DIRECTORY}/qmp-libxl-{domid}"


class QmpError(OSError):
    """QEMU refused a command (EIO), or broke the protocol (EPROTO)."""


class Qmp:
    """A session with the QEMU that listens at `path`, with capabilities negotiated.

    Raises OSError if there is no QEMU, TimeoutError if it does not answer within `timeout` seconds,
    and QmpError.
    """

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._input = bytearray()
        self._last_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout)
            try:
                self._socket.connect(path)
            except OSError as error:
                raise OSError(
                    error.errno, f"no device model at {path}: {os.strerror(error.errno or 0)}"
                ) from error
            greeting = self._receive(Patience(timeout, time.monotonic()), "its greeting")
            if "QMP" not in greeting:
                raise QmpError(errno.EPROTO, f"{path}: not a QMP greeting: {str(greeting)[:200]}")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    def execute(self, command: str, fd: int = -1, /, **arguments: object) -> Any:
        """Carry out one command and return its result; `fd` is passed along (`add-fd`)."""
        self._last_id += 1
        request: dict[str, object] = {"execute": command, "id": self._last_id}
        if arguments:
            request["arguments"] = arguments
        data = json.dumps(request).encode() + b"\r\n"
        patience = Patience(self._timeout, time.monotonic())
        try:
            self._socket.settimeout(self._timeout)
            sent = socket.send_fds(self._socket, [data], [fd] if fd >= 0 else [])
            if sent < len(data):
                self._socket.sendall(data[sent:])
        except TimeoutError:
            raise self._late(command) from None
        except BrokenPipeError:
            raise self._gone(command) from None
        while True:
            answer = self._receive(patience, command)
            if "event" in answer:
                continue
            if answer.get("id") != self._last_id:
                raise QmpError(errno.EPROTO, f"{self._path}: {command}: {str(answer)[:200]}")
            if "error" in answer:
                raise QmpError(errno.EIO, f"device model: {command}: {_text(answer['error'])}")
            return answer.get("return")

    def _receive(self, patience: Patience, what: str) -> dict[str, Any]:
        """Receive the next message, a JSON object on one line."""
        while b"\n" not in self._input:
            if len(self._input) > MAX_MESSAGE:
                raise QmpError(errno.EPROTO, f"{self._path}: message of over {MAX_MESSAGE} bytes")
            if patience.look(time.monotonic()):
                raise self._late(what)
            try:
                self._socket.settimeout(patience.wait)
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            if not data:
                raise self._gone(what)
            self._input += data
        line, _, rest = self._input.partition(b"\n")
        self._input = rest
        try:
            message = json.loads(line)
        except ValueError as error:
            text = f"{self._path}: not JSON: {bytes(line[:200])!r}"
            raise QmpError(errno.EPROTO, text) from error
        if not isinstance(message, dict):
            raise QmpError(errno.EPROTO, f"{self._path}: not an object: {bytes(line[:200])!r}")
        return message

    def _gone(self, what: str) -> ConnectionResetError:
        return ConnectionResetError(
            errno.ECONNRESET, f"the device model at {self._path} ended at {what}"
        )

    def _late(self, what: str) -> TimeoutError:
        return TimeoutError(
            errno.ETIMEDOUT,
            f"the device model at {self._path} has not answered {what} for {self._timeout:g} s",
        )


def _text(error: object) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
