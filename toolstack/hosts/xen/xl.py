"""The command `xl`: what the host's own toolstack does for us, within limits of time."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from xen_save_helper.helper.hypervisors.xen.libraries import abi_version
from xen_save_helper.helper.hypervisors.xen.programs import run_patiently

TIMEOUT: Final = 60.0
"""Seconds for one command; destroying an HVM domain with its devices takes the longest."""

HELPER_VARIABLE: Final = "LIBXL_SAVE_HELPER"
"""The environment variable with the path of libxl's save helper."""

_ADMINISTRATORS: Final = ("/usr/sbin", "/sbin")
"""Where `xl` is installed; a service's path may not have them."""

_ERROR: Final = re.compile(r"^[\w-]+: error: (?:[\w./-]+:\d+:\w+: )?")
"""How an error that libxl, libxc or a save helper has logged begins."""


def program() -> str:
    """The path of `xl`. Raises FileNotFoundError."""
    directories = (os.environ.get("PATH", os.defpath), *_ADMINISTRATORS)
    path = shutil.which("xl", path=os.pathsep.join(directories))
    if path is None:
        raise FileNotFoundError(
            errno.ENOENT, "the command xl is not installed (Debian: xen-utils-common)"
        )
    return path


def run(*arguments: str, timeout: float = TIMEOUT) -> bytes:
    """Run `xl ARGUMENTS` and return what it prints. Raises OSError (EIO) with its complaint if it
    fails, TimeoutError if it takes longer than `timeout` seconds, and was killed."""
    what = f"xl {' '.join(arguments)}"
    try:
        ended = run_patiently([program(), *arguments], timeout)
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, f"{what} has not ended in {timeout:g} s") from None
    if ended.returncode:
        why = complaint(ended.stderr.decode(errors="replace").splitlines())
        raise OSError(errno.EIO, f"{what}: {why or f'exit status {ended.returncode}'}")
    return ended.stdout


def complaint(lines: Sequence[str]) -> str:
    """The line that says best why an `xl` failed: the first error that was logged (the others
    follow from it), or else the last line; "" if there is none."""
    errors = [line for line in lines if _ERROR.match(line)]
    best = errors[:1] or [line for line in lines if line.strip()][-1:]
    return _ERROR.sub("", best[0]).strip() if best else ""


def domain_config(domid: int) -> dict[str, Any]:
    """libxl_retrieve_domain_configuration: libxl_domain_config's JSON as `xl save` writes it into
    its header, without the domid, which only this host has. Raises as `run` does, and OSError
    (EPROTO) for an answer that is not a configuration."""
    answer = run("list", "-l", str(domid))
    try:
        (domain,) = json.loads(answer)
        config: dict[str, Any] = domain["config"]
        config["c_info"].pop("domid", None)
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(
            errno.EPROTO,
            f"`xl list -l {domid}` gives no configuration: {answer[:200].decode(errors='replace')}",
        ) from error
    return config


def save_helper() -> Path:
    """The path of the running Xen's own save helper. Raises a FileNotFoundError that says where we
    looked."""
    candidates = [
        Path(f"/usr/lib/xen-{abi_version()}/bin/libxl-save-helper"),
        Path("/usr/lib/xen/bin/libxl-save-helper"),
        Path("/usr/libexec/xen/bin/libxl-save-helper"),
        Path("/usr/local/lib/xen/bin/libxl-save-helper"),
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        errno.ENOENT, f"libxl's save helper is not at {' nor '.join(map(str, candidates))}"
    )
