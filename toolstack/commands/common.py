"""What every command needs: its host, its way to print and to fail. Cheap to import."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.helper.hypervisors import SIMULATED, XEN
from xen_save_helper.helper.standard_streams import hurry, lost
from xen_save_helper.toolstack.hosts import open_host
from xen_save_helper.toolstack.hosts.xen.presence import in_control_domain
from xen_save_helper.toolstack.xl.outcome import ExitCode

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host

PROGRAM: Final = "xen-toolstack"
"""Who speaks in the lines on stderr."""

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

HOST_VARIABLE: Final = "XEN_TOOLSTACK_HOST"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_PAGE: Final = 4096
_SMALLEST_GUEST: Final = 1 << 20
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class CommandError(Exception):
    """A command cannot do what was asked; the text is its one line, `code` what it exits with."""

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


class Interrupted(Exception):
    """SIGINT or SIGTERM has ended a command, and nothing of it is left."""


class UsageError(Exception):
    """A command that cannot be meant as it stands; the text is its one line."""


def size(text: str) -> int:
    """Octets from `256M`; units are powers of 1024. For argparse."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; want a number and K, M, G or T")
    octets = int(float(match[1]) * _UNITS[match[2].upper()])
    if octets <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: want more than 0")
    return octets


def guest_size(text: str) -> int:
    """As `size`, for a simulated guest's memory. For argparse."""
    octets = size(text)
    if octets < _SMALLEST_GUEST or octets % _PAGE:
        raise argparse.ArgumentTypeError(f"{text!r}: want whole pages of 4 KiB, at least 1M")
    return octets


def positive(text: str) -> int:
    """A whole number, 1 or more. For argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: want a whole number, 1 or more")
    return int(text)


def count(text: str) -> int:
    """A whole number, 0 or more. For argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: want a whole number, 0 or more")
    return int(text)


def trace_file(text: str) -> str:
    """A file that a trace is appended to. For argparse."""
    if text == "-":
        raise argparse.ArgumentTypeError(
            "want a file's name; /dev/stderr shows the trace, ./- is a file called so"
        )
    return text


def directory_of(arguments: argparse.Namespace) -> Path:
    """The directory of a simulated host. Raises UsageError where none is named."""
    if arguments.host is None:
        raise UsageError(f"which host? Give --host DIR or set {HOST_VARIABLE}")
    if arguments.host == XEN:
        raise UsageError("this is for simulated hosts; on Xen, xl does it")
    return Path(arguments.host)


def hypervisor_of(arguments: argparse.Namespace) -> str:
    """The hypervisor's URI: of the host that is named, or else the Xen that this runs on.

    Raises UsageError where none is named and this is no Xen host's control domain.
    """
    if arguments.host is None and in_control_domain():
        return XEN
    if arguments.host == XEN:
        return XEN
    return f"{SIMULATED}{directory_of(arguments).absolute()}"


def host_of(arguments: argparse.Namespace) -> Host:
    """Open the host that `hypervisor_of` tells. Raises as that, and as `host_at`; OSError where it
    is a Xen that cannot be used."""
    hypervisor = hypervisor_of(arguments)
    if hypervisor == XEN:
        return open_host(hypervisor)
    return host_at(directory_of(arguments))


def host_at(directory: Path) -> Host:
    """Open a simulated host. Raises CommandError for a directory that is none."""
    try:
        return open_host(f"{SIMULATED}{directory}")
    except (NotADirectoryError, FileNotFoundError) as error:
        raise CommandError(
            f"{directory} is not a host ({error}); `xen-toolstack init {directory}` makes one"
        ) from error


def guest_of(host: Host, text: str) -> DomainSummary:
    """The guest that `text` names: digits alone are a domid, anything else a name
    (libxl_domain_qualifier_to_domid). Raises CommandError for a guest that there is not."""
    rows = host.domains()
    by_domid = is_domid(text)
    for row in rows:
        if row.domid == int(text) if by_domid else row.name == text:
            return row
    names = ", ".join(row.name for row in rows) or "none"
    what = f"domain {text}" if by_domid else f"guest {text!r}"
    raise CommandError(f"no {what} on this host; there are: {names}")


def is_domid(text: str) -> bool:
    """Whether a guest's name, as it is typed, is a domid."""
    return text.isascii() and text.isdigit()


def check_new_name(text: str) -> None:
    """Raises UsageError for what no new guest can be called."""
    if not text:
        raise UsageError("the guest's name is empty")
    if is_domid(text):
        raise UsageError(f"{text!r}: a name of digits alone would be taken for a domid")


def show(
    arguments: argparse.Namespace,
    value: object,
    human: Callable[[], None],
    code: ExitCode = ExitCode.SUCCESS,
) -> ExitCode:
    """Print `value` as JSON with --json, else what `human` prints. Returns `code`, which says what
    was done, whatever becomes of the printing."""
    try:
        if arguments.json:
            print(json.dumps(value))
        else:
            human()
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Nobody reads it, and somebody has waited long enough.
        hurry(sys.stdout)
    return code


def complain(arguments: argparse.Namespace, text: str) -> None:
    """A failure's one line, on stderr; where that cannot be, on stdout, unless a JSON document is
    there, which says it too."""
    line = f"{PROGRAM}: {' '.join(text.split())}"
    print(line, file=sys.stderr)
    if lost(sys.stderr) and not arguments.json:
        print(line)
