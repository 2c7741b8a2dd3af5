"""Where a guest is, and what a command has left behind in dom0, as seen from the outside."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0 import clean_up
from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.guest import Guest
from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore
from xen_save_helper.toolstack.hosts import open_host

if TYPE_CHECKING:
    from tests.xen.dom0.lab import DomainRow, Lab

_COUNTS: Final = 2
_COUNT_SECONDS: Final = 40
_XL_SECONDS: Final = 30
_POLL_SECONDS: Final = 0.5
_DIRECTORIES: Final = (Path("/var/lib/xen"), Path("/run/xen"), Path("/run/xen-save-helper"))
"""Where libxl and our own toolstack keep a domain's files."""
_STATES: Final = {
    "d": "is dying",
    "c": "has crashed",
    "s": "is suspended",
    "p": "is paused",
}
_STORED: Final = ("/local/domain", "/libxl", "/vm")
"""The directories of xenstore that have a node for each domain."""


def our_helpers() -> dict[int, str]:
    """The running helpers of libxl's commands, by pid, with the state of each as in proc(5)."""
    found = {}
    for (pid, _start), command in clean_up.processes().items():
        if "xen-save-helper" in command and "-domain" in command:
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[pid] = stat.rpartition(")")[2].split()[0]
    return found


def log_dirty_domains() -> set[int]:
    """The domids in log-dirty mode, according to Xen's own dump of its domains (debug key q)."""
    for command in (["dmesg", "-c"], ["debug-keys", "q"]):
        _run(["xl", *command])
    found, domid = set(), -1
    for line in _run(["xl", "dmesg", "-c"]).splitlines():
        if match := re.search(r"General information for domain (\d+)", line):
            domid = int(match[1])
        elif "paging assistance:" in line and "log_dirty" in line.split():
            found.add(domid)
    return found


def log_dirty_goes_off(limit: float = 10) -> None:
    """Check that within `limit` seconds no domain is in log-dirty mode. A later migration that
    succeeds would not prove it: if the mode is on already, `enable_logdirty` of xg_sr_save.c
    switches it off and tries again."""
    wait_until("log-dirty mode is off", lambda: not log_dirty_domains(), limit)


@dataclass(frozen=True)
class Remains:
    """The existing files and xenstore nodes that belong to a domain. A node that is named by a UUID
    comes with its domain, if it has one."""

    files: frozenset[str]
    nodes: frozenset[str]


def remains() -> Remains:
    files = {
        str(path) for directory in _DIRECTORIES for path in directory.rglob("*") if path.is_file()
    }
    nodes = set()
    with Xenstore() as store:
        owners = {
            store.text(f"/local/domain/{domid}/vm"): f"/local/domain/{domid}"
            for domid in store.directory("/local/domain")
        }
        for parent in _STORED:
            for name in store.directory(parent):
                node = f"{parent}/{name}"
                nodes.add(f"{node} of {owners[node]}" if node in owners else node)
    return Remains(frozenset(files), frozenset(nodes))


@dataclass(frozen=True)
class Whereabouts:
    """`place` is "runs" (and counts on), "stands still" (runs, but does not count on from where it
    was), "is nowhere", or one of _STATES; `domid` is 0 if the guest is nowhere. `running` is the
    number of guests that run, `others` the other domains that exist."""

    place: str
    domid: int
    running: int
    others: list[DomainRow]
    detail: str = ""


def whereabouts(lab: Lab, guest: Guest, limit: float) -> Whereabouts:
    """Where the only guest is. Other domains get `limit` seconds to disappear."""
    end = time.monotonic() + limit
    while list(there := lab.domains()) not in ([guest.name], []) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    rows = list(there.values())
    running = sum(_state(row) == "runs" for row in rows)
    own = [row for row in rows if row.name == guest.name]
    others = [row for row in rows if row.name != guest.name]
    if not own:
        return Whereabouts("is nowhere", 0, running, others)
    (row,) = own
    place, detail = _state(row), ""
    if place == "runs" and (detail := _counts(guest)):
        # The guest may have suspended only now, on an earlier request.
        later = lab.domains().get(guest.name)
        place = "is nowhere" if later is None else _state(later)
        place = "stands still" if place == "runs" else place
    return Whereabouts(place, row.domid, running, others, detail)


def wake(guest: Guest, where: Whereabouts) -> bool:
    """Let a guest run on that was left suspended or paused. Returns whether it then counts on."""
    host = open_host("xen")
    if where.place == "is suspended":
        host.resume(where.domid)
    else:
        host.unpause(where.domid)
    return _counts(guest) == ""


def _counts(guest: Guest) -> str:
    """Why the guest does not count on from where it was; "" if it does."""
    try:
        guest.goes_on(_COUNTS, _COUNT_SECONDS)
    except AssertionError as bad:
        return str(bad)
    return ""


def _state(row: DomainRow) -> str:
    """The states of `xl list`: r-----, -b----, --p---, ---s--, ----c-, -----d, or six dashes."""
    for letter, place in _STATES.items():
        if letter in row.state:
            return place
    return "runs"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_XL_SECONDS)
    return done.stdout
