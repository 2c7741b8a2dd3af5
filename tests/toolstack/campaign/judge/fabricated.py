"""Evidence that no run has made: that of runs without a flaw, to be spoilt in one thing each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from xen_save_helper.ipc_schema.causes import Cause
from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.toolstack.campaign.evidence import (
    Again,
    Ended,
    Event,
    Evidence,
    Guest,
    Mode,
    Outliving,
    Place,
    Scene,
)

CONTROLLER, HELPER, RECEIVER, ITS_HELPER, LINK, RECOVER, SERVER, PAGER = range(1, 9)
"""Pids."""
GO = "give the destination permission to start"
GIVEN_BACK = "permit the sender to have the guest back"


def guest(
    name: str = "g",
    state: str = "running",
    *,
    memory_ok: bool | None = True,
    crash: str | None = None,
    log_dirty: bool = False,
    descriptors: Sequence[str] = (),
) -> Guest:
    return Guest(name, state, log_dirty, memory_ok, crash, dict(enumerate(descriptors)))


def waiting(name: str) -> Guest:
    """Suspended, for a person."""
    return guest(name, "suspended", memory_ok=None)


def scene(
    here: Iterable[Guest] = (),
    there: Iterable[Guest] = (),
    *,
    here_files: Iterable[str] = (),
    there_files: Iterable[str] = (),
    **more: Any,
) -> Scene:
    places = {
        Side.SOURCE: Place(tuple(here), tuple(here_files)),
        Side.DESTINATION: Place(tuple(there), tuple(there_files)),
    }
    return Scene(places, **{"processes": (), "temporary": (), **more})


HERE = scene([guest()])
THERE = scene(there=[guest()])


def event(pid: int, name: str, at: float, **fields: Any) -> Event:
    process = {
        CONTROLLER: "controller",
        RECEIVER: "receiver",
        LINK: "link",
        SERVER: "page server",
    }.get(pid, "helper")
    return {"t": at, "pid": pid, "process": process, "event": name, **fields}


def fault(text: str, pid: int = HELPER, at: float = 2.0) -> Event:
    return event(pid, "fault", at, fault=text)


def source(
    rc: int,
    *between: Event,
    status: int = 0,
    retval: int | None = None,
    cause: Cause = Cause.HELPER,
) -> list[Event]:
    """The trace of the source; `retval` is that of the helper's `complete`, None without one.
    `cause` is why it failed, if it did."""
    why = {"cause": cause} if rc else {}
    told = [] if retval is None else [event(HELPER, "complete", 7.9, retval=retval)]
    return [
        event(CONTROLLER, "save", 1.0),
        event(CONTROLLER, "helper_started", 1.1, helper=HELPER),
        *between,
        *told,
        event(CONTROLLER, "helper_exited", 8.0, status=status),
        event(CONTROLLER, "helper_result", 8.1, rc=rc),
        event(CONTROLLER, "save_ended", 8.2, rc=rc, **why),
    ]


def destination(rc: int, *between: Event, status: int = 0, started: bool = False) -> list[Event]:
    """The trace of the receiver and its helper, and the source's word of how it exited."""
    why = {"cause": Cause.HELPER if status else Cause.PEER} if rc else {}
    return [
        event(RECEIVER, "domain_created", 1.2),
        event(RECEIVER, "helper_started", 1.3, helper=ITS_HELPER),
        *between,
        event(RECEIVER, "helper_exited", 8.0, status=status),
        event(RECEIVER, "helper_result", 8.1, rc=rc),
        event(RECEIVER, "restore_ended", 8.2, rc=rc, **why),
        event(
            RECEIVER,
            "received",
            8.3,
            started=started,
            rc=rc,
            reason="it failed" if rc else "",
            **why,
        ),
        event(CONTROLLER, "receiver_exited", 8.4, status=int(not started)),
    ]


def migrate(
    code: int,
    outcome: str,
    reason: str = "",
    *,
    rc: int | None = None,
    transitioned: str = "never",
    seconds: float = 3.0,
) -> Ended:
    rc = (-3 if code else 0) if rc is None else rc
    said = {
        "outcome": outcome,
        "rc": rc,
        "reason": reason,
        "postcopy_transitioned": transitioned,
    }
    err = f"xen-toolstack: {outcome}: {reason}\n" if code else ""
    return Ended("migrate", CONTROLLER, code, json.dumps(said), err, seconds)


def evidence(command: Ended, events: Sequence[Event], end: Scene, **more: Any) -> Evidence:
    """`end`: the scene at the command's end, and after it where `more` says nothing else."""
    recovered = more.get("recovered", end)
    fields: dict[str, Any] = {
        "mode": Mode.LIVE,
        "command": command,
        "restore": None,
        "recoveries": (),
        "persons": (),
        "after_save": None,
        "ends": (end,),
        "recovered": recovered,
        "last": recovered,
        "restored_again": None,
        "events": tuple(sorted(events, key=lambda one: float(one["t"]))),
        "descriptors_before": {},
        "limit": 69.0,
    }
    return Evidence(**{**fields, **more})


KILLED = "source/suspend:before-send=kill"
KILLED_SAID = "saving the domain: the helper was killed by signal 9"
KILLED_RUN = evidence(
    migrate(1, "running-at-source", KILLED_SAID),
    [*source(-3, fault(KILLED), status=-9), *destination(-3)],
    HERE,
)
"""A helper is killed, and the guest runs on at the source."""

SLOW = "source/hello=delay(0.1)"
SLOW_RUN = evidence(
    migrate(0, "success"), [*source(0, fault(SLOW)), *destination(0, started=True)], THERE
)
"""Nothing goes wrong."""

SENTENCED = "source.controller/suspend:heard=kill"
SENTENCED_RUN = evidence(
    Ended("migrate", CONTROLLER, -9, "", "", 3.0),
    [*source(-3, fault(SENTENCED, CONTROLLER))[:3], *destination(-3)[:-1]],
    scene([guest(state="suspended", memory_ok=None)], here_files=["g.journal"], temporary=["x"]),
    recovered=HERE,
    recoveries=(Ended("recover", RECOVER, 0, "'g' is running here", "", 1.0),),
)
"""The controller is killed before anything is promised."""

REPORT_LOST = "link/back@100=cut"
_REPORT_SAID = "the other side closed the link before the destination's report"
REPORT_LOST_RUN = evidence(
    migrate(4, "undefined", _REPORT_SAID),
    [
        *source(0),
        event(CONTROLLER, "handshake", 8.25, action=GO),
        fault(REPORT_LOST, LINK, 8.3),
        event(CONTROLLER, "migrated", 8.9, cause=Cause.PEER),
        *destination(0, started=True),
    ],
    scene([waiting("g--migratedaway")], [guest()], here_files=["g.journal"]),
    recoveries=(Ended("recover", RECOVER, 1, "", "it may run at the destination", 1.0),),
    persons=(Ended("recover", RECOVER, 0, "destroyed", "", 1.0),),
    last=THERE,
)
"""The link is lost after GO."""

LATE = "guest/suspend=late(6)"
LATE_RUN = evidence(
    migrate(
        1, "running-at-source", "the guest did not acknowledge the suspend request in time", rc=-8
    ),
    [
        *source(-8, event(CONTROLLER, "suspend_request", 2.0), retval=-1, cause=Cause.GUEST),
        *destination(-3),
    ],
    HERE,
)
"""The guest suspends later than the limit is."""

BACK = "destination/record.libxc.POSTCOPY_FAULT:write=drop"
BACK_RUN = evidence(
    migrate(0, "success", transitioned="done"),
    [
        *source(0, event(CONTROLLER, "postcopy_transition", 2.0)),
        *destination(0, fault(BACK, ITS_HELPER, 3.0), started=True),
    ],
    THERE,
    mode=Mode.POSTCOPY,
)
"""A page that the guest waits for comes with the others."""

TRANSITIONED = "source/record.libxc.POSTCOPY_PAGE_DATA:write=cut"
TRANSITIONED_RUN = evidence(
    migrate(3, "postcopy-failed", "saving the domain: stream: Broken pipe", transitioned="done"),
    [
        *source(
            -3,
            event(CONTROLLER, "postcopy_transition", 2.0),
            event(CONTROLLER, "stream_write", 2.1, part="postcopy transition end record", rc=0),
            event(CONTROLLER, "suspend_request", 1.9),
            fault(TRANSITIONED, at=3.0),
            retval=-1,
            cause=Cause.PEER,
        ),
        *destination(-3, event(RECEIVER, "stream_read", 2.2, record="POSTCOPY_TRANSITION_END")),
    ],
    scene([waiting("g--postcopy-inconsistent")], here_files=["g.journal"]),
    mode=Mode.POSTCOPY,
    recoveries=(Ended("recover", RECOVER, 1, "", "it may run at the destination", 1.0),),
    persons=(Ended("recover", RECOVER, 0, "'g' is running here", "", 1.0),),
    last=HERE,
)
"""The stream breaks while pages go that the guest has run without."""

RESTORED = "destination/complete:before-send=kill"
_IN_FILE = scene(saved=True)
RESTORED_RUN = evidence(
    Ended("save", CONTROLLER, 0, '{"name": "g"}', "", 3.0),
    [
        *source(0),
        *(
            {**one, "t": one["t"] + 10, "process": "controller"}
            for one in destination(-3, fault(RESTORED, ITS_HELPER), status=-9)
            if one["event"] not in {"received", "receiver_exited"}
        ),
    ],
    _IN_FILE,
    mode=Mode.SAVE,
    restore=Ended(
        "restore",
        RECEIVER,
        1,
        '{"error": "x"}',
        "xen-toolstack: cannot restore 'g': the helper was killed by signal 9\n",
        3.0,
    ),
    after_save=_IN_FILE,
    ends=(_IN_FILE, _IN_FILE),
    restored_again=Again(Ended("restore", 9, 0, "", "", 1.0), (guest(),)),
)
"""A restore fails; another one does not."""

SAVED_RUN = replace(
    KILLED_RUN,
    mode=Mode.SAVE,
    command=Ended(
        "save", CONTROLLER, 1, '{"error": "x"}', f"xen-toolstack: cannot save 'g': {KILLED_SAID}", 3
    ),
    events=tuple(one for one in KILLED_RUN.events if one["pid"] in {CONTROLLER, HELPER})[:-1],
    after_save=HERE,
)
"""`KILLED`, and the guest was to go into a file."""

SERVER_DIES = "source.page-server/sends=kill"
_LOST = "the destination lacks pages: its process has died, without a word"
_WAITS = {
    Side.SOURCE: (Outliving("page-server", False, None),),
    Side.DESTINATION: (Outliving("pager", True, 100),),
}
SERVER_DIES_RUN = evidence(
    migrate(3, "postcopy-failed", _LOST),
    [
        *source(0, event(SERVER, "pages_kept", 7.95, domid=1, pages=128)),
        event(CONTROLLER, "handshake", 8.25, action=GO),
        event(RECEIVER, "handshake", 8.28, action="report the start"),
        fault(SERVER_DIES, SERVER, 8.5),
        event(CONTROLLER, "migrated", 8.9, cause=Cause.DESTINATION),
        *destination(0, started=True),
    ],
    scene(
        [waiting("g--postcopy-inconsistent")],
        [guest(memory_ok=None)],
        here_files=["g.journal", "control/page-server-1-7.json"],
        there_files=["control/pager-1-8.json"],
        outliving=_WAITS,
    ),
    mode=Mode.LINK,
    recoveries=(Ended("recover", RECOVER, 1, "", "it may run at the destination", 1.0),),
    persons=(
        Ended("postcopy", RECOVER, 0, "abandoned", "", 1.0),
        Ended("destroy", RECOVER, 0, "", "", 1.0),
        Ended("recover", RECOVER, 0, "'g' is running here", "", 1.0),
    ),
    last=HERE,
)
"""The page server dies, and its pager waits for a person to look."""

PAGER_DIES = "destination.pager/loads=kill"
PAGER_DIES_RUN = replace(
    SERVER_DIES_RUN,
    command=migrate(3, "postcopy-failed", "the destination lacks pages: it was abandoned"),
    events=tuple(
        sorted(
            [
                *(one for one in SERVER_DIES_RUN.events if one["event"] != "fault"),
                event(PAGER, "outlives", 1.4, started=ITS_HELPER),
                fault(PAGER_DIES, PAGER, 8.5),
            ],
            key=lambda one: float(one["t"]),
        )
    ),
    ends=(
        _CRASHED_THERE := scene(
            [waiting("g--postcopy-inconsistent")],
            [guest(state="crashed", memory_ok=None, crash="pfn 0x4c is paged out")],
            here_files=["g.journal"],
            there_files=["control/pager-1-8.json"],
            outliving={Side.DESTINATION: (Outliving("pager", False, None),)},
        ),
    ),
    recovered=_CRASHED_THERE,
)
"""The pager dies, and the guest with it; a person tells the page server."""

TUNNEL_CUT = "tunnel/stream@100003=cut"
TUNNEL_CUT_RUN = evidence(
    migrate(0, "success"),
    [
        *source(0, event(SERVER, "pages_kept", 7.95, domid=1, pages=128)),
        event(CONTROLLER, "handshake", 8.25, action=GO),
        fault(TUNNEL_CUT, LINK, 8.3),
        *destination(0, started=True),
    ],
    THERE,
    mode=Mode.LINK,
)
"""A connection of the tunnel breaks."""
