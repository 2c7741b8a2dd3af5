"""A place of its own among systemd's units, for a process that outlives who started it.

systemd ends what a service or a login has started with it (`systemctl stop libvirtd`, logind's
KillUserProcesses), whatever session the process has made for itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import Final

BOOTED: Final = "/run/systemd/system"
"""sd_booted(3)."""

_SECONDS: Final = 5.0
_PAUSE: Final = 0.01
_MANAGER: Final = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)


def enter_scope(name: str, description: str) -> str:
    """Move this process into a transient scope of systemd's, if that runs here. Returns why it
    could not be moved, and so ends with its service or login; "" if it need not fear that."""
    if not os.path.isdir(BOOTED):
        return ""
    busctl = shutil.which("busctl")
    if busctl is None:
        return "there is no busctl (package systemd) to ask systemd with"
    unit = f"{name}.scope"
    properties = (
        *("PIDs", "au", "1", str(os.getpid())),
        *("Description", "s", description),
        *("CollectMode", "s", "inactive-or-failed"),
    )
    call = (
        *_MANAGER,
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        unit,
        "fail",
        "3",
        *properties,
        "0",
    )
    try:
        subprocess.run(
            [busctl, "--system", f"--timeout={_SECONDS:g}", "call", *call],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
            text=True,
            errors="replace",
        )
    except subprocess.CalledProcessError as error:
        return f"systemd: {' '.join(error.stderr.split())}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"systemd: {error}"
    end = time.monotonic() + _SECONDS
    while not _is_in(unit):
        if time.monotonic() > end:
            return f"systemd: not in {unit} within {_SECONDS:g} s"
        time.sleep(_PAUSE)
    return ""


def _is_in(unit: str) -> bool:
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        return any(line.rstrip().endswith(f"/{unit}") for line in file)
