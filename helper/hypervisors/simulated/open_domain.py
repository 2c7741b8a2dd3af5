"""A domain as seen from any process of the host: whether it exists, its state, its shared memory.

It needs no numpy, which takes longer to import than most toolstack commands take to run.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final, Self

from xen_save_helper.helper.hypervisors.interface import DomainInfo, ShutdownReason
from xen_save_helper.helper.hypervisors.simulated.config import MAXMEM_CONSTANT
from xen_save_helper.helper.hypervisors.simulated.domain_files import read_config
from xen_save_helper.helper.hypervisors.simulated.layout import RUNS
from xen_save_helper.helper.hypervisors.simulated.shared import (
    GuestGoneError,
    GuestProcess,
    SharedMemory,
)

ANSWER_LIMIT: Final = 10.0
"""Seconds that a domain's process may take to answer a request, and to start or end."""


class OpenDomain:
    """One domain. If its process died, it has crashed, and there is nothing left to look at."""

    def __init__(self, path: Path, domid: int, timeout: float) -> None:
        """`path` is the domain's directory. Raises ProcessLookupError if there is none."""
        self.domid = domid
        self._timeout = timeout
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise ProcessLookupError(errno.ESRCH, f"there is no domain {domid}") from error
        self._process: GuestProcess | None = None
        self._attached: SharedMemory | None = None
        try:
            self._process = GuestProcess.open(self._directory)
            self._attached = self._process.open_memory()
        except GuestGoneError:
            # The guest is dead, and getinfo says so.
            self._detach()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._detach()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.close()
            self._attached = None
        if self._process is not None:
            self._process.close()
            self._process = None

    # -- what there is --------------------------------------------------------------------------

    @property
    def shared(self) -> SharedMemory:
        """Raises ESRCH if the guest had died before this object was made."""
        if self._attached is None:
            raise ProcessLookupError(
                errno.ESRCH, f"domain {self.domid} has crashed: its process is gone"
            )
        return self._attached

    @property
    def attached(self) -> bool:
        """Whether there is shared memory to look at."""
        return self._attached is not None

    @property
    def pid(self) -> int | None:
        """The pid of the guest's process; None if it is dead."""
        return self._process.pid if self._process is not None and self.alive() else None

    def alive(self) -> bool:
        """Whether the guest has a process."""
        return self._process is not None and self._process.alive()

    def config(self) -> dict[str, Any]:
        """Raises ProcessLookupError if the domain is gone."""
        try:
            return read_config(self._directory)
        except FileNotFoundError as error:
            raise ProcessLookupError(errno.ESRCH, f"there is no domain {self.domid}") from error

    def getinfo(self) -> DomainInfo:
        config = self.config()
        if self._attached is None:
            max_memkb = config["b_info"]["max_memkb"] + MAXMEM_CONSTANT
            return DomainInfo(self.domid, True, False, False, ShutdownReason.CRASH, 0, max_memkb)
        domain = self._attached.domain
        shutdown = domain.shutdown if self.alive() else ShutdownReason.CRASH
        return DomainInfo(
            domid=self.domid,
            hvm=True,
            paused=bool(domain.paused),
            dying=False,
            shutdown_reason=None if shutdown == RUNS else ShutdownReason(shutdown),
            nr_pages=domain.nr_pages,
            max_memkb=domain.max_memkb,
            paged_pages=self._attached.paged_pages() if domain.paging else 0,
        )

    def logdirty_off(self) -> None:
        if self._attached is not None and self._attached.domain.logdirty_epoch % 2:
            self._attached.domain.logdirty_epoch += 1
