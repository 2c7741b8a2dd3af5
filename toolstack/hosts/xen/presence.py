"""Whether this program runs in the control domain of a Xen host. Loads no library."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from xen_save_helper.helper.hypervisors.xen.libraries import running_version

_CAPABILITIES: Final = Path("/proc/xen/capabilities")
_UUID: Final = Path("/sys/hypervisor/uuid")
_CONTROL_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""Xen's UUID for the domain that it starts itself."""


def in_control_domain() -> bool:
    """True in dom0. A guest of Xen, and a machine without Xen, are none."""
    if running_version() is None:
        return False
    try:
        return "control_d" in _CAPABILITIES.read_text()
    except FileNotFoundError:
        # xenfs is not mounted.
        return _UUID.exists() and _UUID.read_text().strip() == _CONTROL_UUID
