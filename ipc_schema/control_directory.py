"""The directory in which the operations on a hypervisor can be asked (`ipc_schema.control`)."""

from __future__ import annotations

from xen_save_helper.ipc_schema.hints import Final

DEFAULT_DIRECTORY: Final = "/run/xen-save-helper/control"
DIRECTORY_VARIABLE: Final = "XEN_SAVE_HELPER_CONTROL"


def directory_of(hypervisor: str, of_xen: str) -> str:
    """Where the operations on a hypervisor (`xen` or `sim:DIRECTORY`) are asked; `of_xen` is the
    setting for Xen."""
    simulated, colon, directory = hypervisor.partition(":")
    return f"{directory}/control" if colon and simulated == "sim" else of_xen
