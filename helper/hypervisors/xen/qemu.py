"""QEMU as the device model that libxl starts beside an HVM domain, and how it takes the state of a
restored one.

libxl gives that as `-incoming fd:N`, N being open on a regular file (in
libxl__build_device_model_args_new of all releases to 4.23-dev). QEMU warns of it from 9.1 on and
refuses it from 11.0 on (its docs/about/removed-features.rst); `-incoming file:PATH`, which it has
had since 8.2, takes the same octets. Nothing is imported here that the wrapper does not need, which
starts with each HVM domain.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from xen_save_helper.ipc_schema.hints import Final

REFUSES_FILES: Final = (11, 0)
"""The first version whose `-incoming fd:N` takes no regular file."""

WRAPPER: Final = "xen-save-helper-qemu"
"""Our program that libxl can start in QEMU's place (`helper.qemu_wrapper`)."""

PROGRAM_VARIABLE: Final = "XEN_SAVE_HELPER_QEMU"
"""Which QEMU the wrapper starts."""

PACKAGED: Final = (
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/libexec/xen/bin/qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
    "/usr/local/libexec/xen/bin/qemu-system-i386",
    "/usr/local/lib/xen/bin/qemu-system-i386",
    "/usr/bin/qemu-system-i386",
)
"""Where a libxl that was told of no other one starts it: Debian's place, those of Xen's own builds,
and the one that all machines have in common."""

VERSION_SECONDS: Final = 20.0
"""It prints its version and ends: a matter of the loader's."""

_VERSION: Final = r"\bversion (\d+)\.(\d+)(?:\.(\d+))?"


def packaged() -> str | None:
    """The QEMU that libxl starts if a configuration names none; None if there is none."""
    return next((path for path in PACKAGED if os.access(path, os.X_OK)), None)


def started_by_wrapper(environ: Mapping[str, str]) -> str:
    """The QEMU that the wrapper hands over to. Raises FileNotFoundError that says where it was
    looked for."""
    given = environ.get(PROGRAM_VARIABLE) or packaged()
    if given is None:
        raise FileNotFoundError(
            errno.ENOENT, f"no QEMU at {', '.join(PACKAGED)}: name it in {PROGRAM_VARIABLE}"
        )
    if is_wrapper(given):
        raise FileNotFoundError(
            errno.ENOENT,
            f"{PROGRAM_VARIABLE}={given} is the wrapper itself: name QEMU's own program",
        )
    return given


def is_wrapper(program: str) -> bool:
    """Also if a link to it has been put in the place of another program."""
    return WRAPPER in (os.path.basename(program), os.path.basename(os.path.realpath(program)))


def version_of(program: str) -> tuple[int, int, int]:
    """What `PROGRAM --version` says. Raises OSError (ETIMEDOUT, too) if it cannot be asked."""
    import re
    import subprocess

    from xen_save_helper.helper.hypervisors.xen.programs import run_patiently

    try:
        ended = run_patiently([program, "--version"], VERSION_SECONDS)
    except subprocess.TimeoutExpired:
        what = f"{program} --version has not ended in {VERSION_SECONDS:g} s"
        raise TimeoutError(errno.ETIMEDOUT, what) from None
    found = re.search(_VERSION, ended.stdout.decode(errors="replace"))
    if ended.returncode or found is None:
        said = (ended.stderr or ended.stdout).decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit status {ended.returncode}"
        raise OSError(errno.EPROTO, f"{program} --version tells no version: {why}")
    major, minor, micro = found.groups(default="0")
    return int(major), int(minor), int(micro)


def takes_files(version: tuple[int, int, int]) -> bool:
    """Whether its `-incoming fd:N` takes the file that libxl gives it."""
    return version[:2] < REFUSES_FILES
