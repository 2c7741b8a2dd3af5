from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as Xml

import pytest

from tests.toolstack.campaign.judge.verdicts import EVENTS, report, verdict
from tests.unavailable import unavailable
from xen_save_helper.toolstack.campaign.report import html_page as html_report
from xen_save_helper.toolstack.campaign.report import junit
from xen_save_helper.toolstack.campaign.report.figures import Report, not_fired, rows, show, tally
from xen_save_helper.toolstack.campaign.report.lanes import lanes

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=y> \"'&amp; ]]> --> \x00\x1b[31m \ud800 ☃"
)
MIXED = report(
    verdict("suspend:before-answer=die(KILL); seed=1"),
    verdict("destination/hello=exit(3); seed=1", "save", "fails"),
    verdict("source/hello=exit(3); seed=1", "save"),
    verdict("start=stop; seed=1", "postcopy", "did not fire"),
)


class TestFigures:
    def test_all_hold_is_said_of_a_whole_campaign_alone(self) -> None:
        good = verdict("start=stop")
        assert report(good).all_hold
        assert not report(good, missing=1).all_hold
        assert not report(good, verdict("hello=stop", kind="fails")).all_hold

    def test_what_did_not_fire_counts_where_it_was_to(self) -> None:
        idle = verdict("start=stop", kind="did not fire")
        assert not report(idle).all_hold
        assert report(idle, must_fire=False).all_hold

    def test_rows_are_in_the_order_of_the_modes(self) -> None:
        assert rows(MIXED) == [
            ("save", "2", "1", "1", "0", "2", "1.5"),
            ("live", "1", "1", "0", "0", "1", "1.5"),
            ("postcopy", "1", "0", "0", "1", "0", "1.5"),
            ("all", "4", "2", "1", "1", "3", "1.5"),
        ]

    def test_how_many_came_to_all_their_faults(self) -> None:
        plan = "start=stop; controller/suspend:before-answer=kill; suspend:before-answer=kill"
        fired = ("source/start=stop", "source.controller/suspend:before-answer=kill")
        one = verdict(plan, fired=fired)
        all_of_them = verdict(plan, fired=(*fired, "source/suspend:before-answer=kill"))
        assert not_fired(one) == ["suspend:before-answer=kill"]
        assert not_fired(all_of_them) == []
        found = report(one, all_of_them, must_fire=False)
        assert tally(found.verdicts).whole == found.as_json()["all_fired"] == 1

    def test_a_command_repeats_a_run(self) -> None:
        usual = MIXED.again(MIXED.verdicts[0])
        assert usual == (
            "xen-toolstack faults run --mode live --memory 4M --workload random "
            "'suspend:before-answer=die(KILL); seed=1'"
        )
        fault = MIXED.again(verdict("source/record.libxc.POSTCOPY_FAULT:read=kill", "postcopy"))
        assert "--memory 16M --workload write-heavy" in fault

    def test_json(self) -> None:
        said = report(*MIXED.verdicts, missing=2).as_json()
        assert (said["cells"], said["holds"], said["fails"], said["missing"]) == (6, 2, 1, 2)
        assert [wrong["kind"] for wrong in said["wrong"]] == ["fails", "did not fire"]


class TestTable:
    def test_plain_where_it_is_no_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        show(MIXED)
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert "fails: save: destination/hello=exit(3); seed=1: it is wrong\n" in said
        assert said.endswith("2 of 4 do not hold\n")

    def test_in_colour_on_a_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        show(MIXED)
        said = capsys.readouterr().out
        assert "destination/hello=exit(3); seed=1" in said
        assert "it is wrong" in said
        assert "2 of 4 do not hold" in said

    def test_all_well(self, capsys: pytest.CaptureFixture[str]) -> None:
        show(report(verdict("start=stop")))
        assert capsys.readouterr().out.endswith("all 1 hold\n")


class Known(NamedTuple):
    """What a schema lets an element have."""

    children: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()


def known(children: str, required: str, optional: str) -> Known:
    must = frozenset(required.split())
    return Known(frozenset(children.split()), must | frozenset(optional.split()), must)


JENKINS = {
    "testsuites": known("testsuite", "", "name time tests failures errors"),
    "testsuite": known(
        "testsuite properties testcase system-out system-err",
        "name tests failures errors",
        "group time skipped timestamp hostname id package file log url",
    ),
    "properties": known("property", "", ""),
    "property": known("", "name value", ""),
    "testcase": known(
        "skipped error failure system-out system-err", "name", "time classname group"
    ),
    **dict.fromkeys(("failure", "error", "skipped"), known("", "", "type message")),
}
"""What junit-10.xsd of Jenkins' xUnit plugin admits of what we write."""


class TestJunit:
    def suites(self, found: Report, directory: Path) -> Xml.Element:
        junit.write(found, directory / "junit.xml")
        return Xml.parse(directory / "junit.xml").getroot()

    def test_the_figures_are_those_of_the_cases(self, tmp_path: Path) -> None:
        for must_fire in (True, False):
            found = report(*MIXED.verdicts, must_fire=must_fire)
            root = self.suites(found, tmp_path)
            assert root.tag == "testsuites"
            assert [suite.get("name") for suite in root] == [
                "xen-faults.save",
                "xen-faults.live",
                "xen-faults.postcopy",
            ]
            for element in (root, *root):
                cases = list(element.iter("testcase"))
                assert element.get("tests") == str(len(cases))
                for name, child in (
                    ("failures", "failure"),
                    ("errors", "error"),
                    *([] if element is root else [("skipped", "skipped")]),
                ):
                    assert element.get(name) == str(len(list(element.iter(child))))
            assert len(list(root.iter("error"))) == must_fire
            assert len(list(root.iter("skipped"))) == (not must_fire)

    def test_one_that_is_not_complete_has_an_error(self, tmp_path: Path) -> None:
        root = self.suites(report(verdict("start=stop"), missing=7), tmp_path)
        (error,) = root.iter("error")
        assert "7 runs are missing" in str(error.get("message"))
        assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("2", "1", "0")

    @pytest.mark.parametrize("must_fire", [True, False])
    def test_nothing_that_jenkins_does_not_know(self, tmp_path: Path, must_fire: bool) -> None:
        found = report(*MIXED.verdicts, missing=1, must_fire=must_fire)
        for element in self.suites(found, tmp_path).iter():
            assert JENKINS[element.tag].children >= {child.tag for child in element}
            assert JENKINS[element.tag].attributes >= set(element.attrib)
            assert set(element.attrib) >= JENKINS[element.tag].required

    def test_a_suite_says_in_how_many_all_fired(self, tmp_path: Path) -> None:
        root = self.suites(MIXED, tmp_path)
        said = [given.attrib for given in root.iter("property")]
        assert said == [{"name": "runs in which all fired", "value": n} for n in ("2", "1", "0")]

    def test_a_failure_says_what_is_wrong_and_how_to_repeat_it(self, tmp_path: Path) -> None:
        (failure,) = self.suites(MIXED, tmp_path).iter("failure")
        assert failure.get("message") == "it is wrong"
        assert failure.text is not None
        assert "faults run --mode save" in failure.text
        assert '"event": "fault"' in failure.text

    def test_anything_may_be_said(self, tmp_path: Path) -> None:
        bad = verdict("start=stop", kind="fails", problems=(HOSTILE,), seen={"said": HOSTILE})
        (failure,) = self.suites(report(bad), tmp_path).iter("failure")
        assert "]]>" in (failure.get("message") or "")
        assert "☃" in (failure.text or "")


class Page(HTMLParser):
    """What a browser would make of a page; fails for elements that are not closed in order."""

    VOID = frozenset({"meta", "input", "br", "col"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.contents.setdefault(self.open[-1], []).append(data)

    def all(self, **attributes: str) -> list[dict[str, str | None]]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [given for _tag, given in self.elements if wanted.items() <= given.items()]


def rendered(found: Report, address: str = "") -> str:
    """What the page's script makes of the page; `address` names what is open in it."""
    node = shutil.which("node") or unavailable("the page's script needs node: install nodejs")
    text = html_report.page(found)
    (index,) = re.findall(r'<script type="application/json" id="index">(.*?)</script>', text)
    blocks = re.findall(r'<script type="text/plain" class="block">(.*?)</script>', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    given = {"index": index, "blocks": blocks, "script": script, "hash": address}
    done = subprocess.run(
        [node, str(Path(__file__).parent / "dom.js")],
        input=json.dumps(given),
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def index_of(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="index">(.*?)</script>', text)
    index: dict[str, Any] = json.loads(found)
    return index


def blocks_of(text: str) -> list[Any]:
    found = re.findall(r'<script type="text/plain" class="block">(.*?)</script>', text)
    return [json.loads(gzip.decompress(base64.b64decode(block))) for block in found]


class TestPage:
    def test_each_run_can_be_opened_from_its_mode(self) -> None:
        page = Page(rendered(MIXED))
        openers = [given["data-v"] for given in page.all() if "data-v" in given]
        # The two that are wrong stand in a list of their own, too.
        assert sorted(",".join(filter(None, openers)).split(",")) == ["0", "1", "1", "2", "3", "3"]
        assert "1,2" in openers
        tabs = [given["aria-controls"] for given in page.all(role="tab")]
        panels = [given["id"] for given in page.all(role="tabpanel")]
        assert tabs == panels == ["panel-wrong", "panel-save", "panel-live", "panel-postcopy"]

    def test_a_cell_has_the_colour_and_the_words_of_its_worst_run(self) -> None:
        page = Page(rendered(MIXED))
        (cell,) = page.all(data_v="1,2")
        assert cell["class"] == "cell fails"
        assert cell["aria-label"] == "hello exit: 1 fails, 1 holds"

    def test_what_is_typed_as_kill_is_found_by_that(self) -> None:
        (cell,) = Page(rendered(MIXED)).all(data_v="0")
        assert cell["aria-label"] == "suspend:before-answer die (kill): 1 holds"

    def test_plans_of_several_faults_are_listed(self) -> None:
        pair = verdict("start=stop; hello=kill; seed=3")
        primed = verdict("source.controller/start:after-send=signal(TERM); "
                         "source.controller/abort:before-send=kill")  # fmt: skip
        page = Page(rendered(report(pair, primed)))
        assert [given["class"] for given in page.all(data_v="0")] == ["open holds"]
        assert [given["class"] for given in page.all(data_v="1")] == ["cell holds"]

    def test_two_faults_by_chance_are_listed_whatever_the_second_is(self) -> None:
        pair = verdict("start=stop; source.controller/abort:before-send=kill; seed=3")
        page = Page(rendered(report(pair)))
        assert [given["class"] for given in page.all(data_v="0")] == ["open holds"]

    def test_the_traces_are_in_it(self) -> None:
        text = html_report.page(MIXED)
        index, blocks = index_of(text), blocks_of(text)
        for number, one in enumerate(MIXED.verdicts):
            block, _kind, mode, plan, *_more = index["verdicts"][number]
            assert (mode, plan) == (one.mode, one.plan)
            (details,) = (each for each in blocks[block] if each["number"] == number)
            assert details["problems"] == list(one.problems)
            events = details["events"]
            assert [name for _at, _lane, name, _fields in events] == [e["event"] for e in EVENTS]
            assert [at for at, *_ in events] == [-500, -400, -300, -200, -100, 0, 250]
            assert [index["lanes"][lane] for _at, lane, *_ in events] == [
                "source controller",
                "source controller",
                "source helper",
                "destination controller",
                "destination controller",
                "destination helper",
                "source controller",
            ]

    def test_it_needs_nothing_else(self) -> None:
        text = html_report.page(MIXED)
        page = Page(text)
        for name, given in page.elements:
            assert name not in {"link", "img", "iframe", "object", "embed", "base", "form"}
            assert not {"src", "href", "style", "srcset", "action"} & set(given)
        assert not re.search(r"https?:|@import|url\(|fetch\(", text.replace(SVG, ""))

    def test_only_our_script_runs(self) -> None:
        text = html_report.page(MIXED)
        (policy,) = Page(text).all(http_equiv="Content-Security-Policy")
        assert "default-src 'none'" in (policy["content"] or "")
        for name in ("style", "script"):
            (code,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            assert f"{name}-src 'sha256-{digest}'" in (policy["content"] or "")

    def test_nothing_that_was_said_becomes_markup(self, tmp_path: Path) -> None:
        event = {**EVENTS[0], "event": HOSTILE, "reason": HOSTILE}
        more = {"problems": (HOSTILE,), "expected": HOSTILE, "seen": {HOSTILE: HOSTILE}}
        bad = verdict("start=stop", kind="fails", events=(event,), **more)
        plainly = verdict("start=stop", kind="fails")
        plain = html_report.page(report(plainly))
        html_report.write(report(bad, title=HOSTILE), tmp_path / "page")
        text = (tmp_path / "page").read_text()
        assert [name for name, _ in Page(text).elements] == [
            name for name, _ in Page(plain).elements
        ]
        assert "alert(1)</script>" not in text
        for address in ("", "#0"):
            made, plain_made = (
                [name for name, _ in Page(rendered(found, address)).elements]
                for found in (report(bad, title=HOSTILE), report(plainly))
            )
            assert "img" not in made
            assert address or made == plain_made
        ((details,),) = blocks_of(text)
        assert details["problems"] == [HOSTILE]

    def test_the_same_campaign_has_the_same_page(self) -> None:
        assert html_report.page(MIXED) == html_report.page(MIXED)

    def test_a_campaign_without_runs_has_one(self, tmp_path: Path) -> None:
        html_report.write(report(missing=3), tmp_path / "report.html")
        Page((tmp_path / "report.html").read_text())
        assert "3 of 0" not in rendered(report(missing=3))

    def test_it_says_what_the_campaign_came_to(self) -> None:
        said = rendered(report(*MIXED.verdicts, missing=1200))
        for words in (
            "<h1>A title</h1>",
            "2 of 4 do not hold; 1200 of 1204 have not been run",
            '<li class="holds"><b>2</b> hold</li><li class="fails"><b>1</b> fail</li>'
            '<li class="idle"><b>1</b> did not fire</li>'
            '<li class="missing"><b>1,200</b> not run</li>',
            "4 runs of real processes on two simulated hosts, in 3 of which every fault",
            "6 s of running time",
        ):
            assert words in said

    def test_a_matrix_has_its_points_and_actions_in_sections(self) -> None:
        page = Page(rendered(report(*MIXED.verdicts, verdict("link/stream@9=cut", "save"))))
        groups = [given["colspan"] for given in page.all(scope="colgroup")]
        assert groups == ["1", "1", "1", "1"]
        assert [len(page.all(scope="row")), len(page.all(scope="rowgroup"))] == [4, 4]
        sections = [text for text in page.contents["span"] if text[0].isupper()]
        assert sections == [
            "Helper milestones",
            "Link streams",
            "Helper messages",
            "Helper milestones",
        ]

    def test_a_run_that_is_opened_says_all_of_itself(self) -> None:
        said = rendered(MIXED, "#1")
        for words in (
            "it is wrong",
            "exit code 1",
            "faults run --mode save",
            "500.0 ms",
            "⚡ fault",
        ):
            assert words in said
        assert said.count("data-at=") == len(EVENTS)

    def test_a_run_without_a_trace(self) -> None:
        ((details,),) = blocks_of(html_report.page(report(verdict("start=stop", events=()))))
        assert details["events"] == []


SVG = "http://www.w3.org/2000/svg"
"""A name, not a place."""


class TestLanes:
    def test_of_a_restore_after_a_save(self) -> None:
        events = [
            {"pid": 1, "process": "controller", "event": "save"},
            {"pid": 1, "process": "controller", "event": "helper_started", "helper": 2},
            {"pid": 2, "process": "helper", "event": "hello"},
            {"pid": 3, "process": "controller", "event": "restore"},
            {"pid": 3, "process": "controller", "event": "helper_started", "helper": 4},
            {"pid": 4, "process": "helper", "event": "hello"},
        ]
        assert lanes(events) == [0, 0, 1, 4, 4, 3]

    def test_of_a_restore_alone(self) -> None:
        events = [
            {"pid": 3, "process": "controller", "event": "restore"},
            {"pid": 3, "process": "controller", "event": "helper_started", "helper": 4},
            {"pid": 4, "process": "helper", "event": "start", "operation": "restore"},
        ]
        assert lanes(events) == [4, 4, 3]

    def test_of_the_link_and_of_a_helper_nobody_told_of(self) -> None:
        events = [
            {"pid": 9, "process": "link", "event": "fault"},
            {"pid": 8, "process": "helper", "event": "faults"},
            {"pid": 7, "process": "helper", "event": "start", "operation": "restore"},
        ]
        assert lanes(events) == [2, 1, 3]
