"""What a save and a restore have in common: their log and their reason."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any, Final

from xen_save_helper.ipc_schema.channel.messages import NO_ERRNO, XentoollogLevel
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import HelperResult, Statistics


def rc_of(error: BaseException) -> int:
    """The libxl code of a failed system or host call."""
    return Error.TIMEDOUT if isinstance(error, TimeoutError) else Error.FAIL


def has_device_model(config: Mapping[str, Any]) -> bool:
    """Whether a domain of this configuration (libxl_domain_config's JSON) has one: an HVM domain
    whose `device_model_version` is not `none`."""
    c_info, b_info = (config.get(part) for part in ("c_info", "b_info"))
    hvm = isinstance(c_info, Mapping) and c_info.get("type") == "hvm"
    none = isinstance(b_info, Mapping) and b_info.get("device_model_version") == "none"
    return hvm and not none


HELPER: Final = "xen-save-helper"
"""Context of our helper's own lines, which say all; libxc's leave the errno to be added."""

PEER_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENODATA})
"""The helper's `errnoval` where the other side of its stream has gone: libxc's at a write, and our
own engine's at a read."""


def is_theirs(error: BaseException) -> bool:
    """Whether a stream's error says no more than that its other side has gone."""
    return isinstance(error, EOFError | BrokenPipeError | ConnectionResetError)


class Report:
    """The first failure, the log, and what the helper counted."""

    def __init__(self, ctx: Context, domid: int | None) -> None:
        self.domid = domid
        self.reason = ""
        self.theirs = False
        """The first failure is one of `cause.Failure.theirs`."""
        self.statistics: Statistics | None = None
        self._ctx = ctx
        self._helper_error = ""
        """The helper's word about what went wrong: its first error with an errno (the others, its
        stderr among them, are often what followed from it), or its first."""
        self._helper_errno = False

    def failed(self, reason: str, *, theirs: bool = False, **fields: object) -> None:
        """Log a failure; the first one's reason is the operation's."""
        text = reason if self.domid is None else f"domain {self.domid}: {reason}"
        self._ctx.say(XentoollogLevel.ERROR, "libxl", text)
        self._ctx.trace.event("failure", domid=self.domid, reason=reason, **fields)
        if not self.reason:
            self.reason, self.theirs = reason, theirs

    def event(self, event: str, **fields: object) -> None:
        self._ctx.trace.event(event, domid=self.domid, **fields)

    def helper_ended(self, result: HelperResult, rc: int, doing: str) -> None:
        """The helper's end, with the rc that it means."""
        self.statistics = result.statistics
        self.event(
            "helper_ended",
            rc=rc,
            retval=result.retval,
            errnoval=result.errnoval,
            completed=result.completed,
        )
        if not rc:
            return
        why = result.reason or self._helper_error
        if not why and result.errnoval:
            why = os.strerror(result.errnoval)
        theirs = not result.reason and result.completed and result.errnoval in PEER_GONE
        self.failed(f"{doing}: {why or 'the helper failed'}", theirs=theirs, rc=rc)

    def log_callback(self, level: int, errnoval: int, context: str, formatted: str) -> None:
        """The catalogue's `log`."""
        has_errno = errnoval not in {0, NO_ERRNO}
        if has_errno and context != HELPER and os.strerror(errnoval) not in formatted:
            formatted = f"{formatted}: {os.strerror(errnoval)}"
        if level >= XentoollogLevel.ERROR and (
            not self._helper_error or (has_errno and not self._helper_errno)
        ):
            self._helper_error, self._helper_errno = formatted, has_errno
        self._ctx.say(level, context, formatted)

    def progress_callback(self, context: str, doing_what: str, done: int, total: int) -> None:
        """The catalogue's `progress`; `context` is libxc's own name in all of them."""
        self._ctx.say_progress(doing_what, done, total)
