"""How far a migration came, according to the trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.toolstack.campaign.evidence import Evidence, Mode

_SAYS_GO: Final = "give the destination permission to start"
_GIVES_BACK: Final = "permit the sender to have the guest back"
_TRANSITIONED: Final = ("postcopy transition end record", 0)
"""The part of the libxl stream that was written, and the rc."""


class Stages:
    """The stages that a migration came to, as told by both sides: neither can hide what the other
    has heard."""

    def __init__(self, evidence: Evidence) -> None:
        self._postcopy = evidence.mode is Mode.POSTCOPY
        linked = evidence.mode is Mode.LINK
        here, there = evidence.of(Side.SOURCE), evidence.of(Side.DESTINATION)
        self.transition_begun = self.transition_heard = self.go_said = self.ran_there = False
        self.transition_written = False
        self.whole_there = False
        """The destination's helper says that every page of a guest that runs there has arrived."""
        self.helper_reported_failure = self.guest_asked = self.helper_failed = False
        self.given_back = False
        """The destination has said that it did not start the guest and will not."""
        self.all_in = False
        """Every page that had a link of its own is in place at the destination."""
        for event in evidence.events:
            at, what = event["pid"], event["event"]
            if at in here:
                if what == "complete" and event["retval"]:
                    self.helper_reported_failure = True
                if what == "suspend_request":
                    self.guest_asked = True
                if what == "helper_run":
                    self.helper_failed = True
                if what == "helper_exited" and event["status"]:
                    self.helper_failed = True
                if what == "postcopy_transition":
                    self.transition_begun = True
                if what == "stream_write" and (event["part"], event["rc"]) == _TRANSITIONED:
                    self.transition_written = True
                if is_go(event):
                    self.go_said = True
            if at in there:
                if what == "stream_read" and event.get("record") == "POSTCOPY_TRANSITION_END":
                    self.transition_begun = self.transition_heard = True
                told = what == "callback" and event.get("name") == "complete"
                if told and self.transition_heard and not event.get("retval", 0):
                    self.whole_there = True
                if what == "postcopy_resume_done" and event["rc"] == 0:
                    self.ran_there = True
                if what == "handshake" and event["action"] == "report the start":
                    self.ran_there = True
                if what == "handshake" and event["action"] == _GIVES_BACK:
                    self.given_back = True
                if linked and what == "postcopy_complete":
                    self.all_in = True
        self.whole_there = self.whole_there or (self.all_in and self.ran_there)

    @property
    def promised(self) -> bool:
        """Whether the guest may run at the destination, as far as the source can know."""
        transitioned = self.transition_heard or self.transition_written
        return transitioned or (self.go_said and not self.given_back)

    def transitioned(self, code: int) -> set[str]:
        """The right values of `postcopy_transitioned` for an exit code."""
        if not self._postcopy or not self.transition_begun:
            return {"never"}
        if code in {0, 3}:
            return {"done"}
        return {"never", "failed"}


def is_go(event: Mapping[str, Any]) -> bool:
    """Whether the source is about to say GO."""
    return (event["event"], event.get("action")) == ("handshake", _SAYS_GO)
