"""What a process that outlives its `xl` can be asked, from another shell.

In a directory that is its user's alone each such process has two files. NAME.json is its
`Identity`, one JSON object. NAME.sock is a stream socket: each line that is sent to it is a
request, each line that comes back the response to it, and both are JSON objects. A request is
`{"ask": Ask, ...}`; a response to one that cannot be met is `{"error": str}`.

| ask | besides | response |
|---|---|---|
| `status` | | a `PostcopyStatus` |
| `wait` | | `{"ended": str, "status": PostcopyStatus}`, once it ends |
| `reconnect` | `address` str, `port` int | `{"address": str, "port": int}` |
| `abandon` | | `{}`; it ends |

The `ended` of `wait` is empty if the process has done its work, else it says why not; `status` is
its last one. A process that has lost what it kept leaves its NAME.json behind, with the reason in
`ended`; one that was killed leaves both files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

DEFAULT_DIRECTORY: Final = "/run/xen-save-helper/control"
DIRECTORY_VARIABLE: Final = "XEN_SAVE_HELPER_CONTROL"

IDENTITY: Final = ".json"
SOCKET: Final = ".sock"

LONGEST_LINE: Final = 1 << 16
"""The most bytes of a request or response."""


class Role(StrEnum):
    """What a process does for a guest: it serves its last pages, or puts them in place."""

    PAGE_SERVER = "page-server"
    PAGER = "pager"


class Ask(StrEnum):
    STATUS = "status"
    WAIT = "wait"
    RECONNECT = "reconnect"
    ABANDON = "abandon"


class Identity(NamedTuple):
    """`domain` is the guest's name, as far as it is known; `ended` why the process has ended
    without having done its work, empty while it has not."""

    role: Role
    domid: int
    domain: str
    pid: int
    ended: str = ""

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.role.value}-{self.domid}-{self.pid}"

    @classmethod
    def decode(cls, line: bytes) -> Identity:
        """Raises ValueError for anything else."""
        fields = decode_line(line)
        try:
            identity = cls(**fields)
            return identity._replace(role=Role(identity.role))
        except TypeError as error:
            raise ValueError(f"no identity: {error}") from None


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
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError(f"{fields!r} is no object")
    return fields
