"""What a domain is called, for people."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from xen_save_helper.helper.hypervisors import SIMULATED


def domain_name(hypervisor: str, domid: int) -> str:
    """As xenstore or the simulated host has it; else by its number."""
    with suppress(OSError, ValueError):
        if hypervisor.startswith(SIMULATED):
            name = _simulated(Path(hypervisor.removeprefix(SIMULATED)), domid)
        else:
            name = _in_xenstore(domid)
        if name:
            return name
    return f"domain {domid}"


def _simulated(host: Path, domid: int) -> str:
    from xen_save_helper.helper.hypervisors.simulated import domain_files

    with domain_files.directory_fd(domain_files.domain_path(host, domid)) as directory:
        return str(domain_files.read_config(directory)["c_info"].get("name", ""))


def _in_xenstore(domid: int) -> str:
    from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore

    with Xenstore() as xenstore:
        return xenstore.text(f"/local/domain/{domid}/name") or ""
