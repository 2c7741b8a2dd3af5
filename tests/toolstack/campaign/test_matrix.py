from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from xen_save_helper.ipc_schema.channel.messages import CATALOGUE
from xen_save_helper.ipc_schema.faults.actions import ACTIONS, Action, admitted, sides
from xen_save_helper.ipc_schema.faults.plan import Fault, Plan, parse
from xen_save_helper.ipc_schema.faults.points import ASKS, POINTS, Kind, Point, Side, Who
from xen_save_helper.ipc_schema.streams.xl_handshake import MESSAGES
from xen_save_helper.toolstack.campaign import reach
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.matrix import MODES, Cell, at_random, cells, short
from xen_save_helper.toolstack.campaign.run import FaultRun, run_fault

ALL = cells()


def points_of(some: list[Cell]) -> set[Point]:
    return {cell.aim.point for cell in some}


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """Sockets' paths are in it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def test_every_point_is_in_the_matrix_or_it_is_said_why_not() -> None:
    without = {missing.point for missing in reach.unreached(POINTS)}
    assert points_of(ALL) | without == set(POINTS.values())
    assert not points_of(ALL) & without


def test_the_names_of_what_is_not_passed_are_names_of_the_tables() -> None:
    assert set(reach.NOT_PASSED) <= {point.of for point in POINTS.values()}
    messages = {*reach._OF_MESSAGES, *reach._OF_MESSAGES_AT_DESTINATION}
    assert messages <= set(CATALOGUE)
    assert set(reach._OF_HANDSHAKE) <= set(MESSAGES)
    assert set(reach.PRIMERS) <= {*CATALOGUE, *MESSAGES}
    phases = {point.of for point in POINTS.values() if point.kind is Kind.PHASE}
    assert set(reach._OF_PHASES) <= phases


@pytest.mark.parametrize("point", sorted(points_of(ALL), key=str), ids=str)
def test_a_point_has_a_cell_for_each_action_and_side(point: Point) -> None:
    here = {(cell.aim.action.kind, cell.aim.side) for cell in ALL if cell.aim.point == point}
    for kind in admitted(point):
        expected = {side for side in sides(point, kind) if reach.modes(point, side)} or {None}
        assert {side for one, side in here if one is kind} == expected


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
def test_what_is_taken_to_be_passed_is_and_nothing_else(mode: Mode, short_directory: Path) -> None:
    """By a run in which every point is a fault that does nothing."""
    passed = {}
    for point in POINTS.values():
        at = {"OFFSET": 0, "PFN": 5, "": None}[point.at]
        of_link = point.who in {Who.LINK, Who.TUNNEL}
        nothing = Action(ACTIONS["stall" if of_link else "delay"], 0.0)
        for side in [side for side in Side if side in point.sides] or [None]:
            if point.kind is not Kind.GUEST and point.of not in reach.PRIMERS:
                fault = Fault(point, nothing, side, at)
                passed[fault] = mode in reach.modes(point, side)
    run = FaultRun(Plan(tuple(passed)), mode, 8 << 20, "random", short_directory)
    fired = run_fault(run).fired
    # Whether the guest touches a page in time is up to it.
    by_chance = {"POSTCOPY_FAULT", ASKS}
    certain = {fault: yes for fault, yes in passed.items() if fault.point.of not in by_chance}
    assert {str(fault): str(fault) in fired for fault in certain} == {
        str(fault): yes for fault, yes in certain.items()
    }


def test_every_cell_is_a_plan_that_can_be_typed() -> None:
    for cell in ALL:
        assert parse(str(cell.plan)) == cell.plan


def test_a_cell_has_the_same_seed_each_time() -> None:
    cell = Cell(Mode.LIVE, parse("log:before-send=garbage"))
    assert cell.seeded.seed == 42_889_701
    assert Cell(Mode.LIVE, parse("log:before-send=garbage; seed=5")).seeded.seed == 5


def test_no_cell_is_there_twice() -> None:
    assert Counter(cell.key for cell in ALL).most_common(1)[0][1] == 1


def test_what_is_sent_only_after_a_failure_has_one_before_it() -> None:
    (first, *_) = cells([Mode.LIVE], "abort:before-send")
    assert [str(fault) for fault in first.plan.faults] == [
        "source.controller/start:after-send=signal(TERM)",
        "source.controller/abort:before-send=exit(0)",
    ]


def test_modes_and_globs_select() -> None:
    assert cells([Mode.SAVE, Mode.LIVE]) == [cell for cell in ALL if cell.mode in MODES[:2]]
    suspend = cells([Mode.SAVE], "suspend:*")
    assert {cell.aim.point.who for cell in suspend} == {Who.HELPER, Who.CONTROLLER}
    assert {cell.aim.point.of for cell in suspend} == {"suspend"}
    assert {str(point) for point in points_of(cells(MODES, "link/*"))} == {
        "link/stream@OFFSET",
        "link/back@OFFSET",
        *(f"link/handshake.{name}" for name in MESSAGES),
    }
    assert cells(MODES, "nothing") == []


def test_postcopy_is_only_in_postcopy() -> None:
    for cell in ALL:
        if cell.mode not in {Mode.POSTCOPY, Mode.LINK}:
            assert "postcopy" not in cell.aim.point.of.lower()


def test_the_short_part_touches_every_point_and_every_action() -> None:
    part = short(ALL)
    assert points_of(part) == points_of(ALL)
    assert {cell.aim.action.kind.name for cell in part} == set(ACTIONS)
    assert {(cell.mode, cell.aim.side) for cell in part} == {
        (cell.mode, cell.aim.side) for cell in ALL
    }
    assert len(part) < len(ALL) / 20
    assert part == [cell for cell in ALL if cell in set(part)] == short(ALL)
    modes = Counter(cell.mode for cell in part)
    assert min(modes[mode] for mode in MODES if mode is not Mode.LINK) > len(part) / 6
    assert modes[Mode.LINK] < len(part) / 8
    actions = Counter(cell.aim.action.kind for cell in part)
    assert max(actions.values()) < len(part) / 6


class TestAtRandom:
    def test_the_seed_repeats_it_and_a_longer_one_begins_with_it(self) -> None:
        assert at_random(20, 7) == at_random(50, 7)[:20]
        assert at_random(20, 7) != at_random(20, 8)

    def test_two_faults_that_are_not_the_same_and_can_be_typed(self) -> None:
        for cell in at_random(4000, 0):
            first, second = cell.plan.faults
            assert first[:4] != second[:4]
            assert cell.plan.seed is not None
            assert parse(str(cell.plan)) == cell.plan

    def test_all_modes_sides_points_and_actions_come_up(self) -> None:
        faults = [(cell.mode, fault) for cell in at_random(4000, 1) for fault in cell.plan.faults]
        assert {mode for mode, _fault in faults} == set(MODES)
        assert {fault.side for _mode, fault in faults} == {*Side, None}
        assert {fault.point for _mode, fault in faults} == points_of(ALL)
        assert {fault.action.kind.name for _mode, fault in faults} == set(ACTIONS)

    def test_places_on_the_short_way_back_are_passed(self) -> None:
        faults = [fault for cell in at_random(8000, 3) for fault in cell.plan.faults]
        lengths = {Who.HELPER: 8, Who.LINK: 54 + 35 + 35 + 8 + 42, Who.TUNNEL: 701}
        for who, length in lengths.items():
            places = {
                fault.at
                for fault in faults
                if fault.point.who is who and fault.point.name == "back"
            }
            assert len(places) > 3
            assert all(place is not None and place < length for place in places)

    def test_what_takes_time_does_not_do_so_again_and_again(self) -> None:
        waits = {"stop", "delay", "stall", "late"}
        for cell in at_random(2000, 2):
            for _point, action, _side, _at, times in cell.plan.faults:
                if action.kind.name in waits:
                    assert not times.onwards
                    assert times.percent is None

    def test_a_selection_without_two_faults_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"'nothing' leaves no two faults in the mode save"):
            at_random(1, 1, glob="nothing")


def test_an_action_has_the_arguments_that_are_worth_a_try() -> None:
    answers = {
        cell.aim.action
        for cell in cells([Mode.LIVE], "precopy_policy:before-answer")
        if cell.aim.action.kind.name == "answer"
    }
    kind = ACTIONS["answer"]
    assert answers == {Action(kind, value) for value in (-1, 0, 1, 2, 77)}
