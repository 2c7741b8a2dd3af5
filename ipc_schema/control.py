"""What a running operation, or a process that outlives its `xl`, can be asked from another shell.

In a directory that is its user's alone each of them has two files. NAME.json is its `Identity`, one
JSON object. NAME.sock is a stream socket: each line that is sent to it is a request, each line that
comes back the response to it, and both are JSON objects. A request is `{"ask": Ask, ...}`; a
response to one that cannot be met is `{"error": str}`, and nothing has been changed.

| ask | besides | response |
|---|---|---|
| `status` | | an `OperationStatus`, or a `PostcopyStatus` |
| `wait` | | `{"ended": str, "status": ...}`, once it ends |
| `cancel` | | `{}`; it ends in order, as after SIGINT |
| `set` | one or more of `PARAMETERS`, int | all parameters, as they are now |
| `switch` | `to` str: `postcopy` or `stop-and-copy` | `{}`; precopy ends with its next batch |
| `pause-sending`, `resume-sending` | | `{}` |
| `reconnect` | `address` str, `port` int | `{"address": str, "port": int}` |
| `abandon` | | `{}`; it ends |

While sending is paused precopy does not end: what `switch` and `set` ask for holds once it goes on.
An operation that is being cancelled is changed no more; to cancel it again changes nothing either.

`reconnect` and `abandon` are for page servers and pagers, `cancel` to `resume-sending` for the
others. The drop-in has no postcopy to switch to.

The `ended` of `wait` is empty if the work is done, else it says why not; `status` is the last one.
A page server or pager that has lost what it kept leaves its NAME.json behind, with the reason in
`ended`; a process that was killed leaves both files. A pager's NAME.pages is what
another one needs to take its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum

from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

IDENTITY: Final = ".json"
SOCKET: Final = ".sock"
PAGES: Final = ".pages"
"""The suffix of what a pager leaves for another one (`helper.postcopy_link.record`)."""

LONGEST_LINE: Final = 1 << 16
"""The most bytes of a request or response."""


class Role(StrEnum):
    """What a process does for a guest."""

    MIGRATE = "migrate"
    RECEIVE = "receive"
    SAVE = "save"
    RESTORE = "restore"
    HELPER_SAVE = "helper-save"
    """The drop-in's save, of an `xl save` or at the source of an `xl migrate`."""
    HELPER_RESTORE = "helper-restore"
    PAGE_SERVER = "page-server"
    """It serves the guest's last pages."""
    PAGER = "pager"
    """It puts them in place."""


OUTLIVING: Final = frozenset({Role.PAGE_SERVER, Role.PAGER})
"""The roles of processes that outlive their `xl`."""
SENDING: Final = frozenset({Role.MIGRATE, Role.SAVE, Role.HELPER_SAVE})
"""Those of operations that send a guest, whose sending can be steered."""


class Ask(StrEnum):
    STATUS = "status"
    WAIT = "wait"
    CANCEL = "cancel"
    SET = "set"
    SWITCH = "switch"
    PAUSE_SENDING = "pause-sending"
    RESUME_SENDING = "resume-sending"
    RECONNECT = "reconnect"
    ABANDON = "abandon"


PARAMETERS: Final = ("bandwidth", "max_downtime", "max_rounds", "abort_after", "dirty_threshold")
"""What `set` changes: bytes a second (0 for no limit), milliseconds, rounds, rounds, pages."""


class Identity(NamedTuple):
    """`domain` is the guest's name, as far as it is known; `ended` why the process has ended
    without having done its work, empty while it has not. `domid` is -1 before there is a domain.
    `serial` tells operations of one process apart."""

    role: Role
    domid: int
    domain: str
    pid: int
    ended: str = ""
    serial: int = 0

    @property
    def name(self) -> str:
        """Of its files."""
        which = self.domid if self.domid >= 0 else "new"
        of_process = f"{self.pid}.{self.serial}" if self.serial else self.pid
        return f"{self.role.value}-{which}-{of_process}"

    @classmethod
    def decode(cls, line: bytes) -> Identity:
        """Raises ValueError for anything else."""
        fields = decode_line(line)
        try:
            identity = cls(**fields)
        except TypeError as error:
            raise ValueError(f"no identity: {error}") from None
        for name in ("domid", "pid", "serial"):
            if type(fields.get(name, 0)) is not int:
                raise ValueError(f"no identity: {name} {fields[name]!r}")
        for name in ("domain", "ended"):
            if not isinstance(fields.get(name, ""), str):
                raise ValueError(f"no identity: {name} {fields[name]!r}")
        return identity._replace(role=Role(identity.role))


# Compiled only where it is needed: every helper's start reads this module.
_FILE: Final = (
    rf"(?P<unfinished>\.?)(?P<name>(?P<role>{'|'.join(Role)})-(new|\d+)-(?P<pid>\d+)(\.\d+)?)"
    rf"(?P<suffix>{'|'.join(map(re.escape, (IDENTITY, SOCKET, PAGES)))})"
)


def is_identity(file: str) -> bool:
    """Whether a file in the directory is an `Identity`, by its name."""
    parts = re.fullmatch(_FILE, file)
    return parts is not None and not parts["unfinished"] and parts["suffix"] == IDENTITY


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended: another one may not have asked for its
    status yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def left_by_the_dead(names: Collection[str], lives: Callable[[int], bool] = lives) -> list[str]:
    """Those of the files of a directory, by their names, that are good for nothing: what operations
    have left that were killed, and what any process has left that was killed before it could be
    found. A page server or pager that can be found says that pages are lost."""
    left = []
    for file in names:
        parts = re.fullmatch(_FILE, file)
        if parts is None or lives(int(parts["pid"])):
            continue
        found = parts["name"] + IDENTITY in names and not parts["unfinished"]
        if parts["role"] not in OUTLIVING or not found:
            left.append(file)
    return left


class PostcopyStatus(NamedTuple):
    """`pages` are those that were left to postcopy, `pages_left` those of them that are still to be
    sent (page server) or put in place (pager); `faults` counts those that a vCPU had to wait for.
    `pages_per_second` is that of the last seconds.

    `longest_wait` is how long, in seconds, a vCPU has been waiting for a page now, None for a page
    server, which cannot know. `silent` is for how many seconds nothing has come from the other
    side, which says something each second; `trouble` what is known about that, or empty. `address`
    and `port` are where the page server listens, or is reached.
    """

    role: Role
    domid: int
    domain: str
    pid: int
    pages: int
    pages_left: int
    faults: int
    pages_per_second: float
    longest_wait: float | None
    silent: float
    trouble: str
    address: str
    port: int

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> PostcopyStatus:
        """Raises ValueError for anything else."""
        try:
            status = cls(**fields)
            return status._replace(role=Role(status.role))
        except TypeError as error:
            raise ValueError(f"no status: {error}") from None


def encode_line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but a JSON object."""
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError("it goes too deep") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{fields!r} is no object")
    return fields
