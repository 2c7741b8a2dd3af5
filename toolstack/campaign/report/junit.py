"""A campaign as JUnit XML, as Jenkins, GitLab and others read it: only with what Jenkins' schema
has (junit-10.xsd of its xUnit plugin).

There is a test suite for each mode and a test case for each run: a failure if it does not hold, an
error if its fault had to fire and did not, and skipped if it only might have fired. An incomplete
campaign has an error of its own, so that nobody takes it for a complete one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as Xml

from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.toolstack.campaign.report.figures import IDLE, Report, tally, value_text, why
from xen_save_helper.toolstack.campaign.run import Verdict

_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot carry, not even escaped."""

_SUITE: Final = "xen-faults"


def write(report: Report, path: Path) -> None:
    """Raises OSError."""
    tree = Xml.ElementTree(document(report))
    Xml.indent(tree)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def document(report: Report) -> Xml.Element:
    figures = _figures(report, report.verdicts, _SUITE)
    del figures["skipped"]  # only a suite has it
    suites = Xml.Element("testsuites", figures)
    for mode in report.modes:
        verdicts = report.of(mode)
        suite = Xml.SubElement(
            suites, "testsuite", _figures(report, tuple(verdicts), f"{_SUITE}.{mode}")
        )
        properties = Xml.SubElement(suite, "properties")
        whole = str(tally(verdicts).whole)
        Xml.SubElement(properties, "property", {"name": "runs in which all fired", "value": whole})
        for verdict in verdicts:
            suite.append(_case(report, verdict))
    if report.missing:
        suites.append(_rest(report.missing))
        for name in ("tests", "errors"):
            suites.set(name, str(int(suites.get(name, "0")) + 1))
    return suites


def _rest(missing: int) -> Xml.Element:
    name = f"{_SUITE}.campaign"
    suite = Xml.Element("testsuite", {"name": name, "tests": "1", "errors": "1", "failures": "0"})
    case = Xml.SubElement(suite, "testcase", {"classname": name, "name": "is complete"})
    message = f"{missing} runs are missing: `--resume` makes them"
    Xml.SubElement(case, "error", {"type": "missing", "message": message})
    return suite


def _figures(report: Report, verdicts: tuple[Verdict, ...], name: str) -> dict[str, str]:
    of = tally(verdicts)
    return {
        "name": name,
        "tests": str(of.runs),
        "failures": str(of.fails),
        "errors": str(of.idle if report.must_fire else 0),
        "skipped": str(0 if report.must_fire else of.idle),
        "time": f"{of.seconds:.3f}",
    }


def _case(report: Report, verdict: Verdict) -> Xml.Element:
    case = Xml.Element(
        "testcase",
        {
            "classname": f"{_SUITE}.{verdict.mode}.{_point(verdict)}",
            "name": _text(verdict.plan),
            "time": f"{verdict.seconds:.3f}",
        },
    )
    if report.is_wrong(verdict):
        kind = "error" if verdict.kind == IDLE else "failure"
        attributes = {"type": verdict.kind, "message": _text(why(verdict))}
        Xml.SubElement(case, kind, attributes).text = _text(_account(report, verdict))
    elif verdict.kind == IDLE:
        Xml.SubElement(case, "skipped", {"message": why(verdict)})
    return case


def _point(verdict: Verdict) -> str:
    """The name without dots, which would separate packages."""
    return str(parse(verdict.plan).faults[-1].point).replace(".", "_")


def _account(report: Report, verdict: Verdict) -> str:
    lines = [
        report.again(verdict),
        f"expected: {verdict.expected}",
        *(f"wrong: {problem}" for problem in verdict.problems),
        *(f"{name}: {value_text(name, value)}" for name, value in verdict.seen.items()),
        *(json.dumps(event, default=str) for event in report.trace(verdict)),
    ]
    return "\n".join(lines)


def _text(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
