"""What the page of a campaign knows of its points."""

from __future__ import annotations

from tests.toolstack.campaign.judge.verdicts import report, verdict
from xen_save_helper.ipc_schema.faults.points import POINTS
from xen_save_helper.toolstack.campaign.matrix import cells
from xen_save_helper.toolstack.campaign.report.html_data import entries_of, index_of


def test_every_point_of_the_matrix_has_a_section() -> None:
    first = {cell.aim.point: cell for cell in reversed(cells())}
    made = report(*(verdict(str(cell.plan), cell.mode.value) for cell in first.values()))
    points = index_of(made, entries_of(made, {})[0])["points"]
    assert isinstance(points, list)
    sections = {name: section for name, _doc, section in points}
    assert len(sections) == len(first) <= len(POINTS)
    assert all(sections.values())
    assert sections["pager/loads"] == "Pager steps"
    assert sections["tunnel/stream@OFFSET"] == "Tunnel streams"
