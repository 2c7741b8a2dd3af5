"""Common parts of the commands: the host, printing, errors, types of arguments. Cheap to import."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.helper.hypervisors import SIMULATED, XEN
from xen_save_helper.helper.standard_streams import hurry, lost, quietened
from xen_save_helper.toolstack.hosts import open_host
from xen_save_helper.toolstack.hosts.xen.presence import in_control_domain
from xen_save_helper.toolstack.operations.settle import why_not_listed
from xen_save_helper.toolstack.xl.outcome import ExitCode

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host

PROGRAM: Final = "xen-toolstack"
"""The prefix of our lines on stderr."""

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

HOST_VARIABLE: Final = "XEN_TOOLSTACK_HOST"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_PAGE: Final = 4096
_SMALLEST_GUEST: Final = 1 << 20
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class CommandError(Exception):
    """A command cannot do what was asked; the text is one line, `code` the exit code."""

    def __init__(self, text: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


class Interrupted(Exception):
    """SIGINT or SIGTERM has ended a command, and nothing of it is left."""


class UsageError(Exception):
    """A command line is wrong; the text is one line."""


def size(text: str) -> int:
    """Bytes from a text such as `256M`; units are powers of 1024. For argparse."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"invalid size {text!r}: want a number and K, M, G or T")
    number = int(float(match[1]) * _UNITS[match[2].upper()])
    if number <= 0:
        raise argparse.ArgumentTypeError(f"invalid size {text!r}: want more than 0")
    return number


def guest_size(text: str) -> int:
    """As `size`, for a simulated guest's memory."""
    number = size(text)
    if number < _SMALLEST_GUEST or number % _PAGE:
        raise argparse.ArgumentTypeError(
            f"invalid size {text!r}: want whole pages of 4 KiB, at least 1M"
        )
    return number


def positive(text: str) -> int:
    """A whole number, 1 or more. For argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"invalid number {text!r}: want a whole one, 1 or more")
    return int(text)


def count(text: str) -> int:
    """A whole number, 0 or more. For argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"invalid number {text!r}: want a whole one, 0 or more")
    return int(text)


def trace_file(text: str) -> str:
    """The name of a file to append a trace to. For argparse."""
    if text == "-":
        raise argparse.ArgumentTypeError(
            "invalid file '-': want a name; /dev/stderr shows the trace, and ./- is a file called -"
        )
    return text


def directory_of(arguments: argparse.Namespace) -> Path:
    """The directory of a simulated host. Raises UsageError if none is named."""
    if arguments.host is None:
        raise UsageError(f"no host is named; give --host DIR or set {HOST_VARIABLE}")
    if arguments.host == XEN:
        raise UsageError("this command is for simulated hosts; on Xen, use xl")
    return Path(arguments.host)


def hypervisor_of(arguments: argparse.Namespace) -> str:
    """The URI of the hypervisor: the host that is named, or else the Xen that this runs on.

    Raises UsageError if no host is named and this is not the control domain of a Xen host.
    """
    if arguments.host is None and in_control_domain():
        return XEN
    if arguments.host == XEN:
        return XEN
    return f"{SIMULATED}{directory_of(arguments).absolute()}"


def host_of(arguments: argparse.Namespace) -> Host:
    """Open the host of `hypervisor_of`. Raises as that and `host_at`, and OSError for a Xen that
    cannot be used."""
    hypervisor = hypervisor_of(arguments)
    if hypervisor == XEN:
        return open_host(hypervisor)
    return host_at(directory_of(arguments))


def control_directory_of(arguments: argparse.Namespace) -> Path:
    """Where operations, page servers and pagers are asked: a simulated host's own directory, or
    that of the helpers' own settings. Raises UsageError for a wrong setting, and as `host_at`."""
    if arguments.host not in {None, XEN}:
        return host_of(arguments).control_dir
    from xen_save_helper.helper.settings import read_settings
    from xen_save_helper.ipc_schema.control_directory import DIRECTORY_VARIABLE

    found = read_settings(os.environ)
    for problem in found.problems:
        if DIRECTORY_VARIABLE in problem:
            raise UsageError(problem)
    return Path(found.settings.control)


def state_directory_of(arguments: argparse.Namespace) -> Path:
    """Where the host's journals are; it need not be there. Raises as `host_at`."""
    if arguments.host not in {None, XEN}:
        return host_of(arguments).state_dir
    from xen_save_helper.toolstack.hosts.xen.host import STATE_DIRECTORY

    return STATE_DIRECTORY


def host_at(directory: Path) -> Host:
    """Open a simulated host. Raises CommandError if the directory is not one."""
    try:
        return open_host(f"{SIMULATED}{directory}")
    except (NotADirectoryError, FileNotFoundError) as error:
        raise CommandError(f"{error}; `xen-toolstack init {directory}` makes a host") from error


def guest_of(host: Host, text: str) -> DomainSummary:
    """The guest that `text` names: digits alone are a domid, anything else is a name
    (libxl_domain_qualifier_to_domid). Raises CommandError if there is no such guest."""
    rows = host.domains()
    by_domid = is_domid(text)
    for row in rows:
        if row.domid == int(text) if by_domid else row.name == text:
            return row
    names = ", ".join(row.name for row in rows) or "none"
    what = why_not_listed(host, int(text)) if by_domid else f"there is no guest {text!r}"
    raise CommandError(f"{what}; guests on this host: {names}")


def is_domid(text: str) -> bool:
    """Whether a guest named so on the command line is named by its domid."""
    return text.isascii() and text.isdigit()


def check_new_name(text: str) -> None:
    """Raise UsageError if no guest can be given this name."""
    if not text:
        raise UsageError("the guest's name is empty")
    if is_domid(text):
        raise UsageError(f"invalid name {text!r}: digits alone would be taken for a domid")


def show(
    arguments: argparse.Namespace,
    value: object,
    human: Callable[[], None],
    code: ExitCode = ExitCode.SUCCESS,
) -> ExitCode:
    """Print `value` as JSON with --json, else call `human` to print. Returns `code`, which says
    what was done, even if it cannot be printed."""
    try:
        if arguments.json:
            print(json.dumps(value))
        else:
            human()
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Nobody reads it, and a person has lost patience.
        hurry(sys.stdout)
    return code


def complain(arguments: argparse.Namespace, text: str) -> None:
    """Print the one line of a failure to stderr; if that fails, to stdout, unless that is for JSON,
    which holds the line as well."""
    line = f"{PROGRAM}: {' '.join(text.split())}"
    with quietened(sys.stderr, quiet=False):
        print(line, file=sys.stderr)
    if lost(sys.stderr) and not arguments.json:
        print(line)
