"""The process of a simulated guest.

    python -m xen_save_helper.helper.hypervisors.simulated.guest DOMID DIRECTORY_FD READY_FD GO_FD

It goes into the background on its own, so it outlives the command that created the domain. One line
of JSON on READY_FD says that it is ready, or why not. A byte on GO_FD lets it live on; without it,
the creator has died or given up, and the domain's directory is removed again. It ends by SIGKILL
(destroy), or by itself when its directory is gone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def _into_background() -> None:
    """Detach from the parent, into a session of its own, without the creator's terminal."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    os.chdir("/")


def _log_to(directory: int) -> None:
    """Send errors of the simulation itself to a file of the domain."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    fd = os.open("guest.log", flags, 0o600, dir_fd=directory)
    os.dup2(fd, 2)
    os.close(fd)


def main(arguments: list[str]) -> None:
    domid, directory, ready, go = (int(argument) for argument in arguments)
    for fd in (directory, ready, go):
        os.set_inheritable(fd, False)
    _into_background()
    try:
        _log_to(directory)
        from xen_save_helper.helper.hypervisors.simulated.domain_files import remove_tree
        from xen_save_helper.helper.hypervisors.simulated.guest_loop import GuestLoop

        loop = GuestLoop(directory, domid)
    except Exception as error:
        # The log last: the disk may be full.
        os.write(ready, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        sys.excepthook(type(error), error, error.__traceback__)
        return
    os.write(ready, b"{}")
    os.close(ready)
    lives = os.read(go, 1)
    os.close(go)
    if lives:
        loop.run()
    else:
        remove_tree(Path(os.readlink(f"/proc/self/fd/{directory}")))


if __name__ == "__main__":
    main(sys.argv[1:])
