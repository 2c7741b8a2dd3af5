"""Whether this program runs in a Xen host's control domain, found out without loading a library."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from xen_save_helper.helper.hypervisors.xen.libraries import running_version

_CAPABILITIES: Final = Path("/proc/xen/capabilities")
_UUID: Final = Path("/sys/hypervisor/uuid")
_CONTROL_UUID: Final = "00000000-0000-0000-0000-000000000000"
"""Xen's UUID for the domain that Xen itself starts."""


def in_control_domain() -> bool:
    """Whether this is dom0: not a guest of Xen, nor a machine without Xen."""
    if running_version() is None:
        return False
    try:
        return "control_d" in _CAPABILITIES.read_text()
    except FileNotFoundError:
        # No xenfs is mounted.
        return _UUID.exists() and _UUID.read_text().strip() == _CONTROL_UUID
