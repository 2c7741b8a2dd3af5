from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.causes import SYSTEM, Cause, Why
from xen_save_helper.toolstack.rules.cause import Failure, Failures

OURS = Failure(-3, "the helper was killed")
GONE = Why(Cause.PEER)
THEIRS = Failure(-3, "the other side closed the link", GONE)
NOTE = Failure(0, "verify failed for 2 pages in all")
WORD = Failure(-3, "destination: no room")


@pytest.mark.parametrize(
    ("met", "cause", "consequences"),
    [
        ([], "", ()),
        # Our own failure ends the stream, and the receiver complains about that.
        ([OURS, WORD], OURS.reason, (WORD.reason,)),
        # It failed first; what we saw of that came before its own report.
        ([THEIRS, WORD], WORD.reason, (THEIRS.reason,)),
        # The link itself was cut: nobody knows more.
        ([THEIRS], THEIRS.reason, ()),
        ([THEIRS, THEIRS], THEIRS.reason, ()),
        ([OURS, THEIRS, OURS], OURS.reason, (THEIRS.reason,)),
        # A notice is shown if nothing failed.
        ([NOTE, OURS], OURS.reason, (NOTE.reason,)),
        ([NOTE], NOTE.reason, ()),
    ],
)
def test_which_is_the_cause(met: list[Failure], cause: str, consequences: tuple[str, ...]) -> None:
    failures = Failures()
    for failure in met:
        failures.met(failure)
    assert (failures.reason, failures.consequences) == (cause, consequences)


_WHYS = st.sampled_from([SYSTEM, GONE])


@given(st.lists(st.builds(Failure, st.integers(-9, 0), st.sampled_from("abc"), _WHYS)))
def test_every_reason_is_told_once(met: list[Failure]) -> None:
    failures = Failures()
    for failure in met:
        failures.met(failure)
    told = [failures.reason, *failures.consequences] if met else []
    assert sorted(told) == sorted({failure.reason for failure in met})
    assert failures.rc == next((failure.rc for failure in met if failure.rc), 0)
    ours = [failure for failure in met if failure.rc and not failure.theirs]
    if ours:
        assert failures.reason == ours[0].reason
