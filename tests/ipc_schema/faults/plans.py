"""Strategies for plans: every fault that the tables admit."""

from __future__ import annotations

import errno
import signal

from hypothesis import strategies as st

from xen_save_helper.ipc_schema.faults.actions import Action, ActionKind, Value, admitted, sides
from xen_save_helper.ipc_schema.faults.plan import MAX_SEED, Fault, Plan, Times
from xen_save_helper.ipc_schema.faults.points import POINTS, Kind, Point, Who

_VALUES: dict[str, st.SearchStrategy[Value]] = {
    "CODE": st.integers(0, 255),
    "SIGNAL": st.sampled_from([name.removeprefix("SIG") for name in signal.Signals.__members__]),
    "SECONDS": st.floats(0, 1e6),
    "VALUE": st.integers(-(2**31), 2**31 - 1),
    "ERRNO": st.sampled_from(sorted(errno.errorcode.values())),
    "BYTES": st.integers(1, 2**31 - 1),
    "BYTES_PER_SECOND": st.integers(1, 2**31 - 1),
    "BIT": st.integers(0, 7),
}

CELLS = [(point, kind) for point in POINTS.values() for kind in admitted(point)]
"""The matrix: each point with each action that it admits."""


def values(kind: ActionKind) -> st.SearchStrategy[Value | None]:
    if kind.argument is None:
        return st.none()
    given = _VALUES[kind.argument.name]
    return st.none() | given if kind.optional else given


def times(point: Point) -> st.SearchStrategy[Times]:
    chance = st.builds(lambda percent: Times(percent=percent), st.floats(0, 100, exclude_min=True))
    once = {Kind.MILESTONE, Kind.HANDSHAKE}
    if point.who not in {Who.LINK, Who.GUEST, Who.TUNNEL}:
        chance |= st.builds(Times, st.integers(1, 10**9), st.booleans(), st.none(), st.just(True))
    if point.kind in once or (point.kind is Kind.STREAM and point.of != "page"):
        return st.just(Times()) | chance
    # All fields: hypothesis may fill in those that have a default.
    return (
        st.builds(Times, st.integers(1, 10**9), st.booleans(), st.none(), st.just(False)) | chance
    )


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    point, kind = draw(st.sampled_from(CELLS))
    side = draw(
        st.none() | st.sampled_from(sorted(sides(point, kind), key=str))
        if sides(point, kind)
        else st.none()
    )
    at = draw(st.integers(0, 2**63 - 1)) if point.at else None
    return Fault(point, Action(kind, draw(values(kind))), side, at, draw(times(point)))


plans = st.builds(
    Plan,
    st.lists(faults(), min_size=1, max_size=4).map(tuple),
    st.none() | st.integers(0, MAX_SEED),
    st.none() | st.sampled_from(["/tmp/counts", "/run/a b=c/@counts#1"]),
)
