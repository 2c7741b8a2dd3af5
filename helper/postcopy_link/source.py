"""The saving helper's side of its page server (`page_server`)."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.ipc_schema.channel import packets
from xen_save_helper.ipc_schema.streams.postcopy_offer import PostcopyOffer

if TYPE_CHECKING:
    from xen_save_helper.helper.job import Job

_MODULE: Final = "xen_save_helper.helper.postcopy_link.page_server"
_OFFER_SECONDS: Final = 60.0
"""For the start of an interpreter, on a dom0 that may be busy: 20 s were seen to be too few. The
guest runs meanwhile."""
_SERVES_SECONDS: Final = 20.0
_KEEP_SECONDS: Final = 60.0
_END_SECONDS: Final = 5.0


class PageServer:
    """Started for the domain of a job. Until `let_go` it ends with this process."""

    def __init__(self, job: Job) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ready: str | None = None
        self._asked = False
        """Whether the page server listens for the receiver's next word."""
        assert job.listen is not None
        with theirs:
            request = job.request
            numbers = (theirs.fileno(), request.domid, job.listen.port, request.bandwidth)
            texts = (request.hypervisor, job.listen.address, job.control, job.events)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, *map(str, numbers), *texts],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def offer(self) -> PostcopyOffer:
        """Wait for it. Raises OSError with its reason if it cannot listen."""
        return PostcopyOffer(**self._hear("offer", _OFFER_SECONDS))

    def refusal(self, seconds: float) -> str | None:
        """Why the receiver cannot do postcopy, "" if it can; None if it has not said so within
        `seconds`. Raises OSError if the page server has ended."""
        if self._ready is None and select.select([self._line], [], [], seconds)[0]:
            self._ready = str(self._hear("ready", 0))
        return self._ready

    def is_ready(self, seconds: float) -> bool:
        """Whether the receiver has done what the last record that went ahead wants; False if it has
        not said so within `seconds`. Raises OSError if it has given up, or the page server."""
        if not self._asked:
            packets.send(self._line, {"hear": True})
            self._asked = True
        if not select.select([self._line], [], [], seconds)[0]:
            return False
        self._asked = False
        if refusal := self._hear("ready", 0):
            raise OSError(f"page server: {refusal}")
        return True

    def map(self, bitmap: Bitmap) -> None:
        """Have it map these pages: anew, if it has. Raises OSError."""
        self._of_pages("map", bitmap, "mapped")

    def keep(self, bitmap: Bitmap) -> int:
        """Have it serve these pages, which it has mapped; returns how many they are. Raises
        OSError."""
        return self._of_pages("keep", bitmap, "kept")

    def _of_pages(self, what: str, bitmap: Bitmap, answer: str) -> int:
        memfd = os.memfd_create("bitmap", os.MFD_CLOEXEC)
        with open(memfd, "r+b") as file:
            file.write(bitmap)
            file.seek(0)
            packet = packets.encode({what: len(bitmap)})
            socket.send_fds(self._line, [packet], [memfd])
            return int(self._hear(answer, _KEEP_SECONDS))

    def let_go(self) -> str:
        """The save is done: it serves from here on, whatever becomes of this process. Returns its
        name in the directory of control sockets. Raises OSError if it has lost the pages."""
        packets.send(self._line, {"go": True})
        name = str(self._hear("serves", _SERVES_SECONDS))
        # Nobody waits for it.
        self._process.returncode = 0
        return name

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Without `let_go`, end it."""
        self._line.close()
        if self._process.returncode is None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _hear(self, name: str, seconds: float) -> Any:
        end = time.monotonic() + seconds
        left = seconds
        while select.select([self._line], [], [], left)[0]:
            packet = packets.receive(self._line) or {"error": "it has ended"}
            if "error" in packet:
                raise OSError(f"page server: {packet['error']}")
            if name in packet:
                return packet[name]
            if "ready" in packet:
                self._ready = str(packet["ready"])
            left = max(0.0, end - time.monotonic())
        raise TimeoutError(f"page server: no {name} within {seconds:g} s")
