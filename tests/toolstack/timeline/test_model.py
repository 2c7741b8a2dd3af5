from __future__ import annotations

from itertools import pairwise

import pytest

from tests.toolstack.timeline.traces import TwoMachines, precopy
from xen_save_helper.toolstack.timeline import words
from xen_save_helper.toolstack.timeline.lanes import packed
from xen_save_helper.toolstack.timeline.model import draw
from xen_save_helper.toolstack.timeline.operations import find_operations
from xen_save_helper.toolstack.timeline.picture import Kind, Picture, Span


@pytest.mark.parametrize("offset", [0.0, 12_345.0])
def test_the_downtime_is_taken_apart(offset: float) -> None:
    downtime = draw(precopy(offset, delay=0.0).operation()).downtime
    assert downtime is not None
    assert downtime.whole
    assert [(part.name, round(part.seconds, 3)) for part in downtime.parts] == [
        ("suspend", 0.03),
        ("last pages", 0.02),
        ("state", 0.05),
        ("device model", 0.05),
        ("handshake", 0.05),
        ("resume", 0.01),
    ]
    assert downtime.seconds == pytest.approx(0.21)
    assert downtime.told == 0.19


def test_what_the_trace_does_not_show_is_said() -> None:
    both = precopy()
    both.lines[1].clear()
    (here, _nothing) = both.files()
    (operation,) = find_operations([here])
    picture = draw(operation)
    assert picture.downtime is not None
    assert not picture.downtime.whole
    assert picture.downtime.missing == (
        "the trace does not show state, device model, handshake and resume"
    )
    assert any("destination's trace is not among" in note for note in picture.notes)
    assert "destination" not in " ".join(lane.name for lane in picture.lanes)


def test_rounds_have_bytes_rate_dirty_pages_and_the_decision() -> None:
    (one,) = draw(precopy().operation()).rounds
    assert one.name == "round 1"
    assert (one.pages, one.size, one.dirty) == (1000, 4_096_000, 10)
    assert one.rate == pytest.approx(4_096_000)
    assert (one.decision, one.why) == ("STOP_AND_COPY", "10 pages are few")


def test_the_guest_is_in_one_state_at_a_time(real_picture: Picture) -> None:
    guest = next(lane for lane in real_picture.lanes if lane.name == "guest")
    (states,) = guest.rows
    assert [span.name for span in states] == [
        "runs at the source",
        "stands still",
        "runs, pages arrive",
        "runs at the destination",
    ]
    for before, after in pairwise(states):
        assert before.end == after.start
    assert states[-1].end == real_picture.end


def test_a_real_postcopy_has_its_lanes_figures_and_faults(real_picture: Picture) -> None:
    assert [lane.name for lane in real_picture.lanes] == [
        "guest",
        "source controller",
        "source helper",
        "link",
        "destination helper",
        "destination controller",
    ]
    assert {counter.name for counter in real_picture.counters} == {
        "rate",
        "dirty",
        "missing",
        "faults",
    }
    assert real_picture.faults is not None
    assert real_picture.faults.count == sum(real_picture.faults.classes) > 0
    half = real_picture.faults.at_most(0.5)
    assert half is not None
    assert 0 < half <= real_picture.faults.longest
    assert {message.what for message in real_picture.messages} >= {"banner", "config", "sync"}
    assert real_picture.good
    assert real_picture.same_clock
    assert real_picture.downtime is not None
    assert real_picture.downtime.whole
    assert real_picture.downtime.told is not None
    # The guest stops after it was asked to, and runs before that is told.
    assert real_picture.downtime.told <= real_picture.downtime.seconds + 0.01


def test_a_failure_is_told_once_where_it_happened() -> None:
    both = TwoMachines()
    here, helper = (0, 10, "controller"), (0, 11, "helper")
    both.add(0.0, *here, "migrate", domid=1, to="x", guest="web")
    both.add(0.1, *here, "helper_started", helper=11, guest="web")
    both.add(0.2, *helper, "start", operation="save", domid=1)
    both.add(0.3, *helper, "phase", name="precopy", state="begin")
    both.add(0.4, *helper, "failure", phase="precopy", error="no room", cause="system", errnoval=28)
    both.add(0.5, *here, "save_ended", domid=1, rc=-3, transitioned="never", suspended=False)
    both.add(0.6, *here, "migrated", outcome="running-at-source", rc=-3, reason="no room")
    picture = draw(both.operation())
    assert picture.good is False
    assert "the guest runs at the source (no room)" in picture.headline
    assert [(row.lane, row.event) for row in picture.failures] == [("source helper", "failure")]
    lane = next(lane for lane in picture.lanes if lane.name == "source helper")
    (phase,) = lane.rows[0]
    assert phase.kind is Kind.FAILURE
    assert phase.end == pytest.approx(0.4)


def test_no_row_has_spans_that_overlap() -> None:
    spans = [
        Span(a, b, f"{a}-{b}", Kind.PHASE) for a, b in [(0, 9), (1, 3), (2, 4), (3, 5), (9, 10)]
    ]
    rows = packed(spans)
    assert [[span.name for span in row] for row in rows] == [
        ["0-9", "9-10"],
        ["1-3", "3-5"],
        ["2-4"],
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (2.3e-4, "230 µs"), (0.0342, "34.2 ms"), (1.357, "1.36 s"), (125, "2 min 05 s")],
)
def test_durations_have_three_digits(value: float, shown: str) -> None:
    assert words.seconds(value) == shown


def test_sizes_and_values_are_for_people() -> None:
    assert words.size(33_715_376) == "32.2 MiB"
    assert words.text(2**32 - 1, "errnoval") == "-1"
    assert words.text("a\nb\t c") == "a b c"
    assert len(words.text("x" * 5000)) < 400
