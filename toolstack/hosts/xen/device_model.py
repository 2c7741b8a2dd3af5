"""The device model of an HVM domain: QEMU, controlled as libxl does (libxl_dom_save.c,
libxl_dom_suspend.c, libxl_qmp.c)."""

from __future__ import annotations

import errno
import os
from typing import Final

from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore
from xen_save_helper.toolstack.hosts.xen.domain import home
from xen_save_helper.toolstack.hosts.xen.qmp import Qmp, QmpError, monitor_path

SAVE_TIMEOUT: Final = 30.0
"""Seconds for QEMU to write its state, some hundreds of KiB."""

_PHYSMAP_KEYS: Final = ("start_addr", "size", "name")


def check_supported(xenstore: Xenstore, domid: int) -> None:
    """Raise OSError (ENOTSUP) if the device model is in a stub domain: only libxl can reach its
    monitor from here."""
    stub = xenstore.text(f"{home(domid)}/image/device-model-domid")
    if stub and stub != "0":
        raise OSError(
            errno.ENOTSUP, f"the device model of domain {domid} is a stub domain ({stub})"
        )


def set_log_dirty(domid: int, enable: bool) -> None:
    """libxl__domain_common_switch_qemu_logdirty; does nothing if the mode is as asked already.

    QEMU aborts if the mode is turned off while it is off (memory_global_dirty_log_stop), and cannot
    be asked about it. So we turn it on first, which is harmless at any time.
    """
    with Qmp(monitor_path(domid)) as qmp:
        qmp.execute("xen-set-global-dirty-log", enable=True)
        if not enable:
            qmp.execute("xen-set-global-dirty-log", enable=False)


def suspend(domid: int, live: bool) -> bytes:
    """libxl__qmp_suspend_save: stop the device model, have it save its state, and return that. With
    `live` it gives up the locks on its disk images, for its successor at the destination."""
    memory = os.memfd_create("qemu-save", os.MFD_CLOEXEC)
    try:
        with Qmp(monitor_path(domid), SAVE_TIMEOUT) as qmp:
            qmp.execute("stop")
            # QEMU takes only a descriptor that is open for writing and nothing else.
            writable = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                added = qmp.execute("add-fd", writable)
            finally:
                os.close(writable)
            filename = f"/dev/fdset/{added['fdset-id']}"
            qmp.execute("xen-save-devices-state", filename=filename, live=live)
        state = os.pread(memory, os.fstat(memory).st_size, 0)
    finally:
        os.close(memory)
    if not state:
        raise QmpError(errno.EIO, f"the device model of domain {domid} has saved nothing")
    return state


def resume(domid: int) -> None:
    """libxl__dm_resume."""
    with Qmp(monitor_path(domid)) as qmp:
        qmp.execute("cont")


def xenstore_data(xenstore: Xenstore, domid: int) -> list[tuple[bytes, bytes]]:
    """libxl__save_emulator_xenstore_data: where QEMU has mapped its memory, as (path relative to
    its own directory, value). Newer QEMUs leave no entries. Raises OSError (ENOENT) if part of an
    entry is missing."""
    root = f"{home(0)}/device-model/{domid}"
    entries = []
    for entry in xenstore.directory(f"{root}/physmap"):
        for key in _PHYSMAP_KEYS:
            path = f"physmap/{entry}/{key}"
            value = xenstore.read(f"{root}/{path}")
            if value is None:
                raise OSError(errno.ENOENT, f"xenstore has no {root}/{path}")
            entries.append((path.encode(), value))
    return entries
