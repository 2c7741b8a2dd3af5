"""A domain that `xl restore -p` makes while we restore it, as a restore with postcopy needs.

xl reads a stream of ours in which there is no guest. It makes the domain and starts our save
helper, which hands the domain over to us (`ipc_schema.channel.hand_over`). When memory and
registers are there, or are being paged in, xl is told that its helper is done and given the device
model's records: it finishes the domain, and ends. So a domain has everything that libxl gives one,
and xl waits for no page.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from xen_save_helper.helper.hypervisors.own_programs import own_program
from xen_save_helper.helper.hypervisors.xen import restored_model
from xen_save_helper.helper.settings import HAND_OVER
from xen_save_helper.ipc_schema.channel import hand_over, packets
from xen_save_helper.ipc_schema.channel.hand_over import HandedOver
from xen_save_helper.ipc_schema.streams import libxl_stream, xl_header
from xen_save_helper.ipc_schema.streams.libxl_stream import EmulatorId, RecordType
from xen_save_helper.toolstack.hosts.interface import RestoredGfns, Rings
from xen_save_helper.toolstack.hosts.xen import xl

_HELPER: Final = "xen-save-helper"
_LOOK: Final = 0.2
_ANSWER_SECONDS: Final = 30.0
"""How long libxl may take for what it does at once."""
_FINISH_SECONDS: Final = 120.0
"""How long it may take for devices and the device model."""
_END_SECONDS: Final = 10.0


class DomainBuild:
    """From xl's start to its end; `abandon` ends it at any time, and what it has made.

    Raises OSError with xl's complaint if it fails, TimeoutError if it takes too long.
    """

    def __init__(self, config: Mapping[str, Any], name: str, seconds: float) -> None:
        """Make a paused, empty domain `name`. xl waits for its lock meanwhile, as for every domain:
        `seconds` at most. Raises OSError as `restored_model.choose` does, too."""
        choice = restored_model.choose({**config, "c_info": {**config["c_info"], "name": name}})
        if choice.setting:
            raise OSError(
                errno.ENOTSUP,
                f"its device model is started by {choice.setting}, which postcopy does not support",
            )
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as xl
        self._line: socket.socket | None = None
        with (
            tempfile.TemporaryDirectory(prefix="xen-build-") as directory,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ):
            path = Path(directory, "helper")
            listener.bind(str(path))
            listener.listen(1)
            self._start(path)
            try:
                self._handed = self._hand_over(listener, choice.config, seconds)
            except BaseException:
                self.abandon()
                raise

    def _start(self, path: Path) -> None:
        environment = {
            **os.environ,
            xl.HELPER_VARIABLE: str(own_program(_HELPER)),
            HAND_OVER: str(path),
        }
        self._process = subprocess.Popen(
            [xl.program(), "restore", "-p", "/proc/self/fd/0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )

    def _hand_over(
        self, listener: socket.socket, config: Mapping[str, Any], seconds: float
    ) -> HandedOver:
        self._write(
            xl_header.encode_header(json.dumps(config).encode())
            + libxl_stream.encode_header()
            + libxl_stream.encode_record(RecordType.LIBXC_CONTEXT)
        )
        self._line = self._accept(listener, seconds)
        self._line.settimeout(_ANSWER_SECONDS)
        handed = packets.receive(self._line)
        try:
            return HandedOver(**handed)
        except TypeError as error:
            raise OSError(errno.EPROTO, f"the helper of xl says {handed!r}") from error

    @property
    def domid(self) -> int:
        return self._handed.domid

    @property
    def rings(self) -> Rings:
        return Rings(*self._handed[1:])

    def static_data_done(self, missing: int) -> int:
        """Let libxl make up for what is missing; returns its answer."""
        assert self._line is not None
        packets.send(self._line, {hand_over.STATIC_DATA_DONE: missing})
        answer = packets.receive(self._line).get(hand_over.ANSWER)
        if not isinstance(answer, int):
            raise self._failed("has ended")
        return answer

    def finish(
        self, gfns: RestoredGfns, xenstore: Sequence[tuple[bytes, bytes]], context: bytes | None
    ) -> None:
        """Have xl finish the domain, which stays paused, and wait for its end."""
        assert self._line is not None
        packets.send(self._line, {hand_over.RESTORED: gfns._asdict()})
        qemu = EmulatorId.QEMU_UPSTREAM
        records = b""
        if context is not None:
            body = libxl_stream.encode_emulator_xenstore_data(qemu, 0, list(xenstore))
            records += libxl_stream.encode_record(RecordType.EMULATOR_XENSTORE_DATA, body)
            body = libxl_stream.encode_emulator_context(qemu, 0, context)
            records += libxl_stream.encode_record(RecordType.EMULATOR_CONTEXT, body)
        self._write(records + libxl_stream.encode_record(RecordType.END))
        self._close()
        try:
            status = self._process.wait(_FINISH_SECONDS)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                errno.ETIMEDOUT, f"xl has not finished the domain in {_FINISH_SECONDS:g} s"
            ) from None
        if status:
            raise self._failed(f"exit status {status}")
        self._log.close()

    def abandon(self) -> None:
        """End xl in order: it destroys what it has made."""
        self._close()
        for end in (None, self._process.terminate, self._process.kill):
            if end is not None:
                end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
                break
        self._log.close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if self._line is not None:
            self._line.close()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed(str(error)) from error

    def _accept(self, listener: socket.socket, seconds: float) -> socket.socket:
        """Wait for the helper that libxl starts when it has made the domain."""
        poll = select.poll()
        poll.register(listener.fileno(), select.POLLIN)
        deadline = time.monotonic() + seconds
        while not poll.poll(_LOOK * 1000):
            if (status := self._process.poll()) is not None:
                raise self._failed(f"exit status {status}")
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"xl has not made the domain in {seconds:g} s")
        return listener.accept()[0]

    def _failed(self, how: str) -> OSError:
        """With xl's account of it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return OSError(errno.EIO, f"xl restore: {xl.complaint(lines) or how}")
