"""Where a fault can be injected: every message, phase and record of the tables, at each moment.

A point is typed as its name, after who carries out the fault unless that is the helper:
`suspend:before-answer`, `phase.precopy`, `record.libxc.HVM_CONTEXT:write`, `stream@4096`,
`controller/suspend:heard`, `controller/handshake.go:before-send`, `link/handshake.report`,
`link/stream@4096`, `guest/suspend`, `page-server/sends`, `pager/loads`, `tunnel/stream@4096`. A
new row of a table has its points by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    Answer,
    Message,
    Operation,
    Sender,
)
from xen_save_helper.ipc_schema.streams import libxc_record_types, libxl_stream, xl_handshake
from xen_save_helper.ipc_schema.streams.phases import HEADERS, Phase, Stage
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage


class Who(Enum):
    """Who carries out a fault."""

    HELPER = "helper"
    CONTROLLER = "controller"
    LINK = "link"
    GUEST = "guest"
    PAGE_SERVER = "page-server"
    """It has a guest's last pages, which the pager brings over a link of their own."""
    PAGER = "pager"
    """The restoring helper, as far as it deals with a page server; it outlives its controller."""
    TUNNEL = "tunnel"
    """The connections of a pager to its page server."""


class Side(Enum):
    """An end of a save and restore: a save to a file is the source as well."""

    SOURCE = "source"
    DESTINATION = "destination"


SIDES: Final[Mapping[Operation, Side]] = {
    Operation.SAVE: Side.SOURCE,
    Operation.RESTORE: Side.DESTINATION,
}


class Kind(Enum):
    """What a point belongs to; with the moment it decides what can be done there."""

    MESSAGE = "message"
    HANDSHAKE = "handshake"
    MILESTONE = "milestone"
    PHASE = "phase"
    RECORD = "record"
    STREAM = "stream"
    GUEST = "guest"
    STEP = "step"
    """Of the work of a page server or a pager."""


class Moment(Enum):
    """The moments of messages (the helper's and the handshake's) and of records."""

    BEFORE_SEND = "before-send"
    AFTER_SEND = "after-send"
    HEARD = "heard"
    """A message of the other end has arrived; nothing was done about it yet."""
    BEFORE_ANSWER = "before-answer"
    """The helper has received the answer and not taken it yet; the controller has the answer and
    has not sent it yet."""
    AFTER_ANSWER = "after-answer"
    WRITE = "write"
    """Before the record's first byte is written."""
    READ = "read"
    """Before the record's first byte is given to its reader."""


class Point(NamedTuple):
    """A point. `of` is the name of its message, phase or record; `sides` is empty for the link and
    the tunnel, which belong to no side."""

    who: Who
    name: str
    kind: Kind
    sides: frozenset[Side]
    doc: str
    of: str = ""
    moment: Moment | None = None

    @property
    def at(self) -> str:
        """What follows the `@` that the point needs, `OFFSET` or `PFN`; "" if it takes none."""
        return _AT.get(self.name, "") if self.kind is Kind.STREAM else ""

    @property
    def on_pipe(self) -> bool:
        """Whether the point exists on libxl's pipes; only the helper's end of their messages has
        points."""
        if self.kind is not Kind.MESSAGE:
            return True
        return self.who is Who.HELPER and CATALOGUE[self.of].on_pipe

    def __str__(self) -> str:
        """The point as it is listed: with who carries it out, and what must follow."""
        who = "" if self.who is Who.HELPER else f"{self.who.value}/"
        return f"{who}{self.name}{self.at and f'@{self.at}'}"


FIRST_BYTE: Final = "first-byte"
START: Final = "start"
HELLO: Final = "hello"
EXIT: Final = "exit"

OFFERS: Final = "offers"
KEEPS: Final = "keeps"
SERVES: Final = "serves"
SENDS: Final = "sends"
DRAINED: Final = "drained"
"""Steps of a page server."""

CONNECTS: Final = "connects"
TAKES_OVER: Final = "takes-over"
ASKS: Final = "asks"
LOADS: Final = "loads"
ALL_IN: Final = "all-in"
"""Steps of a pager."""

_AT: Final = {"stream": "OFFSET", "back": "OFFSET", "page": "PFN"}
_BOTH: Final = frozenset(Side)
_SOURCE: Final = frozenset({Side.SOURCE})
_DESTINATION: Final = frozenset({Side.DESTINATION})

BACK_RECORDS: Final = frozenset(
    {
        libxc_record_types.RecordType.POSTCOPY_READY,
        libxc_record_types.RecordType.POSTCOPY_FAULT,
        libxc_record_types.RecordType.POSTCOPY_COMPLETE,
    }
)
"""Records of the libxc stream that go over the back channel, to the source."""

_NOT_RELAYED: Final = frozenset({libxc_record_types.RecordType.CHECKPOINT_DIRTY_PFN_LIST})
"""COLO's back channel is libxl's between checkpoints, and no relay knows whose turn it is."""

_MESSAGE_DOCS: Final[Mapping[tuple[Who, Moment], str]] = {
    (Who.HELPER, Moment.BEFORE_SEND): "the helper is about to send {}",
    (Who.HELPER, Moment.AFTER_SEND): "the helper has sent {}",
    (Who.HELPER, Moment.BEFORE_ANSWER): "the answer to {} has come to the helper",
    (Who.HELPER, Moment.AFTER_ANSWER): "the helper has taken the answer to {}",
    (Who.CONTROLLER, Moment.BEFORE_SEND): "the controller is about to send {}",
    (Who.CONTROLLER, Moment.AFTER_SEND): "the controller has sent {}",
    (Who.CONTROLLER, Moment.HEARD): "{} has come to the controller",
    (Who.CONTROLLER, Moment.BEFORE_ANSWER): "the controller is about to answer {}",
    (Who.CONTROLLER, Moment.AFTER_ANSWER): "the controller has answered {}",
}


def phase_point(name: str) -> str:
    """The name of the point at which the phase `name` of the trace begins."""
    return f"phase.{name.replace(' ', '-')}"


def message_point(message: str, moment: Moment) -> str:
    return f"{message}:{moment.value}"


def handshake_point(message: str, moment: Moment | None = None) -> str:
    """The name of a point of the handshake; without a moment, of the link."""
    return f"handshake.{message}:{moment.value}" if moment else f"handshake.{message}"


def record_point(stream: str, record: str, moment: Moment) -> str:
    """`stream` is `libxc` or `libxl`."""
    return f"record.{stream}.{record}:{moment.value}"


def _messages() -> Iterator[Point]:
    sent = (Moment.BEFORE_SEND, Moment.AFTER_SEND)
    answered = (Moment.BEFORE_ANSWER, Moment.AFTER_ANSWER)
    for message in CATALOGUE.values():
        has_answer = message.answer is not Answer.NONE
        if message.sender is Sender.HELPER:
            for moment in sent + (answered if has_answer else ()):
                yield _message(Who.HELPER, message, moment)
            for moment in (Moment.HEARD, *(answered if has_answer else ())):
                yield _message(Who.CONTROLLER, message, moment)
        else:
            for moment in sent:
                yield _message(Who.CONTROLLER, message, moment)


def _message(who: Who, message: Message, moment: Moment) -> Point:
    return Point(
        who,
        message_point(message.name, moment),
        Kind.MESSAGE,
        frozenset(SIDES[operation] for operation in message.operations),
        _MESSAGE_DOCS[who, moment].format(message.name),
        message.name,
        moment,
    )


def _handshake() -> Iterator[Point]:
    """Each side passes the points of what it says and of what it hears; the link passes all."""
    for message in xl_handshake.MESSAGES.values():
        says = SIDES[message.sender]
        (hears,) = _BOTH - {says}
        for moment, side in (
            (Moment.BEFORE_SEND, says),
            (Moment.AFTER_SEND, says),
            (Moment.HEARD, hears),
        ):
            doc = _MESSAGE_DOCS[Who.CONTROLLER, moment].format(message.what)
            yield _of_handshake(Who.CONTROLLER, message, moment, frozenset({side}), doc)
        doc = f"before the first byte of {message.what} passes the link"
        yield _of_handshake(Who.LINK, message, None, frozenset(), doc)


def _of_handshake(
    who: Who, message: HandshakeMessage, moment: Moment | None, sides: frozenset[Side], doc: str
) -> Point:
    name = handshake_point(message.name, moment)
    return Point(who, name, Kind.HANDSHAKE, sides, doc, message.name, moment)


def _phases() -> Iterator[Point]:
    sides: dict[str, frozenset[Side]] = {}
    of_save = [phase.value for phase in Phase if phase is not Phase.FINISHED]
    of_restore = [HEADERS, *(stage.value for stage in Stage if stage is not Stage.ENDED)]
    for names, side in ((of_save, _SOURCE), (of_restore, _DESTINATION)):
        for name in names:
            sides[name] = sides.get(name, frozenset()) | side
    for name, where in sides.items():
        doc = f"our engine begins its phase {name}"
        yield Point(Who.HELPER, phase_point(name), Kind.PHASE, where, doc, name)


def _milestones() -> Iterator[Point]:
    for name, doc in (
        (START, "the helper's process has read its plan, and has done nothing else"),
        (HELLO, "the helper is ready to speak; on ZeroMQ, it has said hello"),
        (EXIT, "the helper has done all that it had to, and is about to exit"),
    ):
        yield Point(Who.HELPER, name, Kind.MILESTONE, _BOTH, doc, name)


def _records() -> Iterator[Point]:
    for kind in libxc_record_types.RecordType:
        if kind not in _NOT_RELAYED:
            back = kind in BACK_RECORDS
            yield from _record(Who.HELPER, "libxc", kind.name, back=back)
    for libxl_kind in libxl_stream.RecordType:
        yield from _record(Who.CONTROLLER, "libxl", libxl_kind.name, back=False)


def _record(who: Who, stream: str, record: str, *, back: bool) -> Iterator[Point]:
    ends = (_DESTINATION, _SOURCE) if back else (_SOURCE, _DESTINATION)
    verbs = {Moment.WRITE: "written", Moment.READ: "read"}
    for (moment, verb), sides in zip(verbs.items(), ends, strict=True):
        doc = f"before a {stream} record {record} is {verb}"
        name = record_point(stream, record, moment)
        yield Point(who, name, Kind.RECORD, sides, doc, record, moment)


def _streams() -> Iterator[Point]:
    for name, doc in (
        (FIRST_BYTE, "before the first octet of the helper's part of the stream"),
        ("stream", "before the byte at this offset of the helper's part of the stream"),
        ("back", "before the byte at this offset of the helper's part of the back channel"),
        ("page", "before the contents of this page (its entry in a list if it has none)"),
    ):
        yield Point(Who.HELPER, name, Kind.STREAM, _BOTH, doc, name)
    for name, doc in (
        ("stream", "before the byte at this offset of all that goes to the destination"),
        ("back", "before the byte at this offset of all that comes back from it"),
    ):
        yield Point(Who.LINK, name, Kind.STREAM, frozenset(), doc, name)
    for name, doc in (
        ("stream", "before the byte at this offset of what a connection brings to the pager"),
        ("back", "before the byte at this offset of what a connection brings to the page server"),
    ):
        yield Point(Who.TUNNEL, name, Kind.STREAM, frozenset(), doc, name)


def _steps() -> Iterator[Point]:
    for name, doc in (
        (OFFERS, "the page server listens, and is about to say where"),
        (KEEPS, "the page server is told which pages to keep, of those that it has mapped"),
        (SERVES, "the save is done: the page server serves, and goes on without the helper"),
        (SENDS, "the page server is about to send pages"),
        (DRAINED, "the page server hears that all pages are in place"),
    ):
        yield Point(Who.PAGE_SERVER, name, Kind.STEP, _SOURCE, doc, name)
    for name, doc in (
        (CONNECTS, "the pager is about to connect to the page server"),
        (TAKES_OVER, "the guest is restored: the pager goes on without its controller"),
        (ASKS, "the pager is about to ask for a page that a vCPU waits for"),
        (LOADS, "the pager is about to put a page in place"),
        (ALL_IN, "no page is missing any more, and the page server does not know yet"),
    ):
        yield Point(Who.PAGER, name, Kind.STEP, _DESTINATION, doc, name)


def _guest() -> Iterator[Point]:
    yield Point(
        Who.GUEST, "suspend", Kind.GUEST, _SOURCE, "the guest is asked to suspend", "suspend"
    )


POINTS: Final[Mapping[tuple[Who, str], Point]] = {
    (point.who, point.name): point
    for rows in (
        _milestones(),
        _messages(),
        _handshake(),
        _phases(),
        _streams(),
        _records(),
        _guest(),
        _steps(),
    )
    for point in rows
}
"""Every point, by who and name."""


def find(name: str, who: Who | None = None) -> Point | None:
    """The point `name` of `who`; without `who` that of the helper, or else of the controller."""
    for one in (Who.HELPER, Who.CONTROLLER) if who is None else (who,):
        if (point := POINTS.get((one, name))) is not None:
            return point
    return None
