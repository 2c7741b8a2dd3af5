from __future__ import annotations

from pathlib import Path

from tests.toolstack.campaign.judge.verdicts import report, verdict
from xen_save_helper.toolstack.campaign.report.html_page import page
from xen_save_helper.toolstack.campaign.report.timelines import picture_of_run, write_timelines

GOOD = verdict("start=stop; seed=1")
BAD = verdict("hello=stop; seed=1", kind="fails")
WITHOUT_A_TRACE = verdict("hello=kill; seed=1", kind="fails", events=())


def test_what_does_not_hold_has_a_timeline(tmp_path: Path) -> None:
    found = report(GOOD, BAD, WITHOUT_A_TRACE)
    places = write_timelines(found, tmp_path, every=False)
    assert places == {1: "timelines/1.html"}
    assert "What went wrong" in (tmp_path / "timelines/1.html").read_text()
    assert page(found, places) != page(found)


def test_each_run_has_one_if_asked_for(tmp_path: Path) -> None:
    places = write_timelines(report(GOOD, BAD, WITHOUT_A_TRACE), tmp_path, every=True)
    assert list(places) == [0, 1]
    assert sorted(path.name for path in (tmp_path / "timelines").iterdir()) == ["0.html", "1.html"]


def test_the_operation_that_was_struck_is_drawn() -> None:
    picture = picture_of_run(GOOD.events, GOOD.plan)
    assert picture is not None
    assert any(row.event == "fault" for row in picture.rows)
