"""What both sides of a migration saw: the messages of the handshake, and the records of the
stream.

Each pair is certain: its cause was written into the trace before anything was sent, its effect
after that had arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.streams.phases import HEADERS, Phase, Stage
from xen_save_helper.ipc_schema.streams.xl_handshake import MESSAGES
from xen_save_helper.toolstack.timeline.clocks import Seen
from xen_save_helper.toolstack.timeline.trace_lines import Line


class Pair(NamedTuple):
    """`cause` at one side happens before `effect` at the other; `outward`: from the source."""

    what: str
    cause: Callable[[Line], bool]
    effect: Callable[[Line], bool]
    outward: bool


def sightings(lines: Iterable[Line], *, source: bool) -> dict[str, float]:
    """When this side saw what both see, by what that is."""
    found: dict[str, float] = {}
    wanted = {pair.what: pair.cause if pair.outward is source else pair.effect for pair in PAIRS}
    for line in lines:
        for what, fits in wanted.items():
            # The first time: a cause that comes again proves no more.
            if what not in found and fits(line):
                found[what] = line.t
    return found


def seen_by_both(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Iterator[Seen]:
    """All that bounds the offset of the destination's clock, by the sightings of both sides."""
    for pair in PAIRS:
        if pair.what in ours and pair.what in theirs:
            yield Seen(pair.what, ours[pair.what], theirs[pair.what], outward=pair.outward)


def is_event(event: str, /, **fields: object) -> Callable[[Line], bool]:
    """Whether a line is of this event, with these fields."""

    def fits(line: Line) -> bool:
        return line.event == event and all(line.get(key) == value for key, value in fields.items())

    return fits


def _messages() -> Iterator[Pair]:
    for message in MESSAGES.values():
        yield Pair(
            message.what,
            is_event("handshake_said", message=message.name),
            is_event("handshake_heard", message=message.name),
            outward=message.sender is Operation.SAVE,
        )


def _part_of_stream(what: str, sent_in: Phase, read_in: str) -> Pair:
    """A part of the stream that the saving helper sends in one phase, and without which the
    restoring one does not end another."""
    return Pair(
        what,
        is_event("phase", name=sent_in.value, state="begin"),
        is_event("phase", name=read_in, state="end"),
        outward=True,
    )


PAIRS: Final[tuple[Pair, ...]] = (
    *_messages(),
    _part_of_stream("the stream's headers", Phase.HEADERS, HEADERS),
    _part_of_stream("the static data", Phase.STATIC_DATA, Stage.STATIC_DATA.value),
    _part_of_stream(
        "the postcopy transition", Phase.POSTCOPY_TRANSITION, Stage.POSTCOPY_PFNS.value
    ),
    Pair(
        "the guest's state",
        is_event("phase", name=Phase.STATE.value, state="begin"),
        is_event("complete", retval=0),
        outward=True,
    ),
    Pair(
        "the news that all pages have arrived",
        is_event("postcopy_complete"),
        is_event("phase", name=Phase.POSTCOPY_DRAIN.value, state="end"),
        outward=False,
    ),
    Pair(
        "the page server's news that all pages have arrived",
        is_event("postcopy_complete"),
        is_event("pages_gone"),
        outward=False,
    ),
)
"""What both sides of a migration see, if it gets that far."""
