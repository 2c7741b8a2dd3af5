"""Which domain of a simulated host has which name."""

from __future__ import annotations

import os
from pathlib import Path

from xen_save_helper.helper.hypervisors.simulated import domain_files


class Names:
    """The names of a host's domains. A configuration that has not been replaced since the last look
    is not read again: a host with many guests is asked for names several times a migration."""

    def __init__(self, host: Path) -> None:
        self._host = host
        self._read: dict[int, tuple[int, int, str]] = {}
        """By domid: the inode and modification time of its configuration, and the name in it."""

    def find(self, name: str) -> int | None:
        """The domid of the domain of this name; None if there is none. A domain that is destroyed
        meanwhile is passed over."""
        for domid in domain_files.domids(self._host):
            try:
                found = self._name_of(domid)
            except FileNotFoundError:
                self._read.pop(domid, None)
                continue
            if found == name:
                return domid
        return None

    def _name_of(self, domid: int) -> str:
        """Empty for a domain without one. Raises FileNotFoundError if it is gone."""
        path = domain_files.domain_path(self._host, domid)
        status = os.stat(domain_files.config_path(path))
        known = self._read.get(domid)
        if known is None or known[:2] != (status.st_ino, status.st_mtime_ns):
            with domain_files.directory_fd(path) as fd:
                config = domain_files.read_config(fd)
            # If it was replaced after the look, the next look reads it again.
            known = (status.st_ino, status.st_mtime_ns, config["c_info"].get("name", ""))
            self._read[domid] = known
        return known[2]
