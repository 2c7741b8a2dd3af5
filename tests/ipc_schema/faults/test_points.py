from __future__ import annotations

import pytest

from tests.ipc_schema.faults.plans import CELLS
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, Answer, Sender
from xen_save_helper.ipc_schema.faults.actions import (
    ACTIONS,
    WRONG_SEQUENCE,
    admitted,
    on_pipe,
    sides,
)
from xen_save_helper.ipc_schema.faults.points import POINTS, SIDES, Kind, Point, Side, Who
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType as LibxlRecordType
from xen_save_helper.ipc_schema.streams.xl_handshake import MESSAGES


@pytest.mark.parametrize("point", POINTS.values(), ids=str)
def test_at_every_point_something_can_be_done(point: Point) -> None:
    assert admitted(point)
    assert len(set(admitted(point))) == len(admitted(point))
    assert point.doc


def test_every_action_can_be_done_somewhere() -> None:
    assert {kind.name for _point, kind in CELLS} == set(ACTIONS)


def test_every_cell_has_its_place() -> None:
    for point, kind in CELLS:
        assert bool(sides(point, kind)) == (point.who not in {Who.LINK, Who.TUNNEL}), (point, kind)
        assert sides(point, kind) <= point.sides


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_message_has_its_points(name: str) -> None:
    message = CATALOGUE[name]
    moments = {
        (point.who.value, point.name.partition(":")[2])
        for point in POINTS.values()
        if point.kind is Kind.MESSAGE and point.of == name
    }
    sender = message.sender.value
    expected = {(sender, "before-send"), (sender, "after-send")}
    if message.sender is Sender.HELPER:
        expected.add(("controller", "heard"))
    if message.answer is not Answer.NONE:
        expected |= {
            (who, moment)
            for who in ("helper", "controller")
            for moment in ("before-answer", "after-answer")
        }
    assert moments == expected


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_of_the_handshake_has_its_points(name: str) -> None:
    points = {
        (point.who, point.name.removeprefix(f"handshake.{name}")): point
        for point in POINTS.values()
        if point.kind is Kind.HANDSHAKE and point.of == name
    }
    says = SIDES[MESSAGES[name].sender]
    (hears,) = set(Side) - {says}
    assert {where: point.sides for where, point in points.items()} == {
        (Who.CONTROLLER, ":before-send"): {says},
        (Who.CONTROLLER, ":after-send"): {says},
        (Who.CONTROLLER, ":heard"): {hears},
        (Who.LINK, ""): set(),
    }


def test_a_record_has_its_points() -> None:
    names = {point.name for point in POINTS.values() if point.kind is Kind.RECORD}
    libxc = set(RecordType) - {RecordType.CHECKPOINT_DIRTY_PFN_LIST}
    assert names == {
        f"record.{stream}.{kind.name}:{moment}"
        for stream, kinds in (("libxc", libxc), ("libxl", set(LibxlRecordType)))
        for kind in kinds
        for moment in ("write", "read")
    }


def test_the_back_channels_records_go_the_other_way() -> None:
    fault = POINTS[Who.HELPER, "record.libxc.POSTCOPY_FAULT:write"]
    page = POINTS[Who.HELPER, "record.libxc.PAGE_DATA:write"]
    assert (fault.sides, page.sides) == ({Side.DESTINATION}, {Side.SOURCE})


def test_what_there_is_on_libxls_pipes() -> None:
    assert not POINTS[Who.HELPER, "hello:before-send"].on_pipe
    suspend = POINTS[Who.HELPER, "suspend:before-send"]
    assert [kind for kind in admitted(suspend) if not on_pipe(suspend, kind)] == [WRONG_SEQUENCE]
