"""Whether a domain lives, and its name, from any thread: with a connection of its own."""

from __future__ import annotations

from contextlib import suppress

from xen_save_helper.helper.hypervisors import SIMULATED, XEN
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from xen_save_helper.helper.hypervisors.simulated.open_domain import OpenDomain


def lives(hypervisor: str, domid: int) -> bool:
    """Whether the domain exists, and has not been destroyed."""
    try:
        if hypervisor == XEN:
            from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl

            with Xenctrl() as xenctrl:
                return not xenctrl.domain_getinfo(domid).dying
        with _simulated(hypervisor, domid) as domain:
            return domain.alive()
    except OSError:
        return False


def name(hypervisor: str, domid: int) -> str:
    """Its name now; else its number in words."""
    with suppress(OSError):
        if found := _name(hypervisor, domid):
            return found
    return f"domain {domid}"


def _name(hypervisor: str, domid: int) -> str | None:
    if hypervisor == XEN:
        from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore

        with Xenstore() as xenstore:
            return xenstore.text(f"/local/domain/{domid}/name")
    with _simulated(hypervisor, domid) as domain:
        return str(domain.config()["c_info"]["name"])


def _simulated(hypervisor: str, domid: int) -> OpenDomain:
    from pathlib import Path

    from xen_save_helper.helper.hypervisors.simulated.domain_files import domain_path
    from xen_save_helper.helper.hypervisors.simulated.open_domain import ANSWER_LIMIT, OpenDomain

    path = domain_path(Path(hypervisor.removeprefix(SIMULATED)), domid)
    return OpenDomain(path, domid, ANSWER_LIMIT)
