"""What a postcopy receiver knows of each page, as a table.

    invalid --listed--> outstanding --faulted--> requested --arrived--> ready
                        outstanding --arrived--> ready
                        outstanding --released-> dropped

The other rows: several vCPUs wait for one page, a request crosses the page, or a page arrives that
the guest has given back. Anything else is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import IntEnum

from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.pfns import Pfns, highest, runs_of


class PageState(IntEnum):
    INVALID = 0
    """Not part of the postcopy phase."""
    OUTSTANDING = 1
    REQUESTED = 2
    """A vCPU waits for it, and the sender knows."""
    READY = 3
    DROPPED = 4


class PageEvent(IntEnum):
    LISTED = 0
    FAULTED = 1
    ARRIVED = 2
    RELEASED = 3


_S, _E = PageState, PageEvent

TRANSITIONS: Final[Mapping[tuple[PageState, PageEvent], PageState]] = {
    (_S.INVALID, _E.LISTED): _S.OUTSTANDING,
    (_S.OUTSTANDING, _E.FAULTED): _S.REQUESTED,
    (_S.OUTSTANDING, _E.ARRIVED): _S.READY,
    (_S.OUTSTANDING, _E.RELEASED): _S.DROPPED,
    (_S.REQUESTED, _E.FAULTED): _S.REQUESTED,
    (_S.REQUESTED, _E.ARRIVED): _S.READY,
    # One vCPU gives back what another waits for: the page will come, and both continue.
    (_S.REQUESTED, _E.RELEASED): _S.REQUESTED,
    (_S.READY, _E.FAULTED): _S.READY,
    (_S.READY, _E.RELEASED): _S.READY,
    (_S.DROPPED, _E.ARRIVED): _S.DROPPED,
    (_S.DROPPED, _E.FAULTED): _S.DROPPED,
    (_S.DROPPED, _E.RELEASED): _S.DROPPED,
}

_WRONG: Final = 255
_STATES: Final = tuple(PageState)
_AWAITED: Final = tuple(s in (PageState.OUTSTANDING, PageState.REQUESTED) for s in PageState)
_IS_AWAITED: Final = bytes(_AWAITED).ljust(256, b"\0")
_AFTER: Final = tuple(
    bytes(TRANSITIONS.get((state, event), _WRONG) for state in PageState).ljust(256, b"\xff")
    for event in PageEvent
)
"""For each event the state after each state."""


class PageStateError(ValueError):
    """An event that may not happen to a page in its state."""

    def __init__(self, pfn: int, state: PageState, event: PageEvent) -> None:
        super().__init__(f"pfn {pfn:#x} is {state.name.lower()} and was {event.name.lower()}")
        self.pfn = pfn
        self.state = state
        self.event = event


class PageStates:
    """The state of every pfn below `size`, a byte each. `pending` pages are still to come."""

    def __init__(self, size: int) -> None:
        self._states = bytearray(size)
        self.pending = 0

    def __len__(self) -> int:
        return len(self._states)

    def of(self, pfn: int) -> PageState:
        return _STATES[self._states[pfn]]

    def awaited(self) -> bytearray:
        """For each pfn 1 if it is still to come, else 0."""
        return self._states.translate(_IS_AWAITED)

    def happens_to(self, event: PageEvent, pfn: int) -> PageState:
        """Apply `event` to one page; returns its previous state. Raises PageStateError."""
        if pfn >= len(self._states):
            raise PageStateError(pfn, PageState.INVALID, event)
        before = self._states[pfn]
        after = _AFTER[event][before]
        if after == _WRONG:
            raise PageStateError(pfn, _STATES[before], event)
        if after != before:
            self._states[pfn] = after
            self.pending += _AWAITED[after] - _AWAITED[before]
        return _STATES[before]

    def happens(self, event: PageEvent, pfns: Pfns) -> bytes:
        """Apply `event` to each of `pfns` at once; returns their previous states.

        Raises PageStateError, with no state changed, for the first page that it may not happen to
        (out of range counts as invalid) and for a page that is listed twice.
        """
        if not pfns:
            return b""
        if (last := highest(pfns)) >= len(self._states):
            raise PageStateError(last, PageState.INVALID, event)
        runs = list(runs_of(pfns))
        before = b"".join(self._states[first : first + count] for first, count, _ in runs)
        after = before.translate(_AFTER[event])
        if (wrong := after.find(_WRONG)) >= 0:
            raise PageStateError(pfns[wrong], PageState(before[wrong]), event)
        if len(runs) > 1 and len(set(pfns)) < len(pfns):
            twice = next(pfn for pfn, times in Counter(sorted(pfns)).items() if times > 1)
            raise PageStateError(twice, PageState(_AFTER[event][self._states[twice]]), event)
        for first, count, place in runs:
            self._states[first : first + count] = after[place : place + count]
        self.pending += _awaited(after) - _awaited(before)
        return before


def _awaited(states: bytes) -> int:
    return states.count(PageState.OUTSTANDING) + states.count(PageState.REQUESTED)
