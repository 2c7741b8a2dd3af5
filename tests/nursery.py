"""Guests' processes that are forked from one that has all their modules loaded.

A guest's interpreter takes 0.08 s of computing to start, and a run makes more than a thousand. What
is theirs alone is as it always is: `StartingGuest`, the descriptors, the way into the background,
`guest.main`. Guests that a command starts have an interpreter of their own, and so have those of
tests with the fixture `own_interpreters`.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from xen_save_helper.toolstack.hosts.simulated import process

_GUEST: Final = "xen_save_helper.helper.hypervisors.simulated.guest"
_LONGEST: Final = 100
_DESCRIPTORS: Final = 3


class _Born:
    """The part of Popen that `StartingGuest` needs, of a process that nobody has to reap."""

    def __enter__(self) -> _Born:
        return self

    def __exit__(self, *exception: object) -> None:
        """Do nothing."""

    def wait(self, timeout: float) -> int:
        """The process that Popen would have started ends when the guest is in the background."""
        del timeout
        return 0

    def kill(self) -> None:
        """Do nothing: the guest ends with the pipe from its maker."""


@contextmanager
def forked_guests() -> Iterator[None]:
    """Guests that this process makes are forked."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near:
        with far:
            # Named as a guest is: whoever looks for guests that are left over has to find those.
            subprocess.run(
                [sys.executable, "-m", "tests.nursery", _GUEST, str(far.fileno())],
                pass_fds=(far.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
                env=process._environment(),
                check=True,
            )

        def popen(command: Sequence[str], *, pass_fds: Sequence[int], **_more: Any) -> _Born:
            domid = command[-1 - _DESCRIPTORS]
            socket.send_fds(near, [domid.encode()], pass_fds)
            return _Born()

        stand_in = SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL)
        with mock.patch.object(process, "subprocess", stand_in):
            yield


@contextmanager
def own_interpreters() -> Iterator[None]:
    """They are started as they are without `forked_guests`."""
    with mock.patch.object(process, "subprocess", subprocess):
        yield


def _main(fd: int) -> None:
    """Fork guests until nobody can ask for one any more."""
    # In the background, as guests are: a test may look at its process's children.
    if os.fork():
        os._exit(0)
    os.setsid()
    from xen_save_helper.helper.hypervisors.simulated import guest, guest_loop

    assert guest_loop.GuestLoop
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=fd) as asked:
        while True:
            domid, passed, _flags, _address = socket.recv_fds(asked, _LONGEST, _DESCRIPTORS)
            if not domid:
                return
            child = os.fork()
            if not child:
                asked.close()
                try:
                    guest.main([domid.decode(), *map(str, passed)])
                finally:
                    os._exit(0)
            for descriptor in passed:
                os.close(descriptor)
            os.waitpid(child, 0)


if __name__ == "__main__":
    _main(int(sys.argv[2]))
