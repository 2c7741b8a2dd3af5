"""The command timeline, and the option --timeline, as their users meet them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.toolstack.stage import TOOLSTACK, Hosts, called, toolstack
from tests.toolstack.timeline.traces import precopy
from tests.unavailable import unavailable

ANOTHER_CLOCK = ("unshare", "--time", "--monotonic", "86400", "--fork")


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    return precopy(offset=12.0).write(tmp_path)


@pytest.fixture(autouse=True)
def in_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestTimeline:
    def test_it_draws_a_page_named_after_the_trace(self, traces: list[Path]) -> None:
        ended = called("timeline", *traces)
        assert ended.code == 0, ended.err
        lines = ended.out.splitlines()
        assert lines[0] == (
            "Migration of web: precopy; migrated: the guest runs at the destination"
        )
        assert lines[1].startswith("the destination's clock is ahead by 12.000000 s, ± ")
        assert lines[-1] == "here.html"
        assert "<h1>Migration of web: precopy</h1>" in Path("here.html").read_text()

    def test_it_writes_trace_events_for_perfetto(self, traces: list[Path]) -> None:
        ended = called("timeline", *traces, "--trace-event", "out.json", "--json")
        assert ended.json["page"] is None
        assert ended.json["trace_event"] == "out.json"
        assert abs(ended.json["clocks"]["offset_seconds"] - 12.0) < 1e-3
        assert json.loads(Path("out.json").read_text())["traceEvents"]
        assert not Path("here.html").exists()

    def test_stdout_takes_either(self, traces: list[Path]) -> None:
        assert called("timeline", *traces, "-o", "-").out.startswith("<!DOCTYPE html>")
        assert json.loads(called("timeline", *traces, "--trace-event", "-").out)

    def test_of_many_operations_it_takes_the_last_and_says_so(self, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        first = precopy().write(tmp_path)
        both = precopy(guest="db")
        for lines in both.lines:
            for line in lines:
                line["t"] += 100
                line["pid"] += 100
                line.update({"helper": line["helper"] + 100} if "helper" in line else {})
                line.update({"realtime": line["realtime"] + 100} if "realtime" in line else {})
        files = [*first, *both.write(other)]
        ended = called("timeline", *files)
        assert "Migration of db" in ended.out
        assert "operation 2 of 2 in the traces" in ended.out
        assert "Migration of web" in called("timeline", *files, "--guest", "web").out
        assert "Migration of web" in called("timeline", *files, "--operation", "1").out
        listed = called("timeline", *files, "--list", "--json").json
        assert [row["guest"] for row in listed] == ["web", "db"]
        assert len(called("timeline", *files, "--list").out.splitlines()) == 2
        wrong = called("timeline", *files, "--guest", "mail")
        assert (wrong.code, wrong.line) == (
            1,
            "xen-toolstack: no operation on 'mail' is in the traces; guests: db, web",
        )
        assert "the traces hold 2" in called("timeline", *files, "--operation", "3").line

    def test_bad_files_are_named(self, tmp_path: Path, traces: list[Path]) -> None:
        bad = tmp_path / "bad"
        bad.write_text('{"t": 1}\n{"t": 2}\n')
        assert f"{bad}: line 1 is not a line of a trace" in called("timeline", bad).line
        bad.write_text("")
        assert "no save, restore or migration" in called("timeline", bad).line
        assert "No such file" in called("timeline", "nowhere").line
        before = traces[0].read_bytes()
        over = called("timeline", *traces, "-o", traces[0])
        assert over.code == 2
        assert "is one of the traces" in over.line
        assert traces[0].read_bytes() == before
        assert called("timeline", *traces, "-o", "no/such/page.html").code == 1

    def test_a_cut_line_is_told_of(self, traces: list[Path]) -> None:
        whole = traces[1].read_bytes()
        traces[1].write_bytes(whole + b'{"t": 5, "pi')
        ended = called("timeline", *traces)
        assert ended.code == 0
        assert f"{traces[1]}: line" in ended.out
        assert "is cut, and left out" in ended.out


class TestOfWhatACommandDoes:
    def test_a_demo_draws_itself(self) -> None:
        ended = called("demo", "--memory", "4M", "--timeline", "demo.html")
        assert ended.code == 0, ended.err
        assert any(line.split() == ["timeline", "demo.html"] for line in ended.out.splitlines())
        assert "Migration of demo: precopy" in Path("demo.html").read_text()

    def test_a_migration_draws_its_own_alone(self, hosts: Hosts, tmp_path: Path) -> None:
        hosts.at_source.create_guest("web", 4 << 20, "idle")
        events = tmp_path / "events"
        events.write_text("this is not a trace\n")
        ended = called(
            *("migrate", "web", "--to", hosts.destination, "--host", hosts.source),
            *("--events", events, "--timeline", "web.html"),
        )
        assert ended.code == 0, ended.err
        text = Path("web.html").read_text()
        assert "Migration of web: precopy" in text
        assert "destination controller" in text

    def test_a_failed_one_is_drawn_as_well(self, hosts: Hosts) -> None:
        hosts.at_source.create_guest("web", 4 << 20, "idle")
        ended = called(
            *("migrate", "web", "--to", "false", "--host", hosts.source),
            *("--timeline", "web.html"),
        )
        assert ended.code == 1
        assert "What went wrong" in Path("web.html").read_text()

    @pytest.mark.parametrize("target", ["no/such/page.html", "-", "."])
    def test_a_page_that_cannot_be_written_is_told_before_anything_begins(
        self, hosts: Hosts, target: str
    ) -> None:
        hosts.at_source.create_guest("web", 4 << 20, "idle")
        given = ("migrate", "web", "--to", hosts.destination, "--host", hosts.source)
        ended = called(*given, "--timeline", target)
        assert ended.code in {1, 2}
        assert ended.line
        assert [row.name for row in hosts.at_source.domains()] == ["web"]

    def test_a_fault_run_draws_itself(self) -> None:
        ended = called("faults", "run", "source/suspend:before-answer=kill", "--timeline", "f.html")
        assert ended.code == 0, ended.out + ended.err
        assert "timeline            f.html" in ended.out
        text = Path("f.html").read_text()
        assert "injected: source/suspend:before-answer=kill" in text
        assert "the helper was killed by signal 9" in text

    def test_clocks_of_two_machines_are_aligned(self, hosts: Hosts, tmp_path: Path) -> None:
        """The receiver lives in a time namespace, whose clock is a day ahead."""
        if os.geteuid() or subprocess.run([*ANOTHER_CLOCK, "true"], check=False).returncode:
            unavailable("another clock needs root, and util-linux's unshare --time")
        hosts.at_source.create_guest("web", 4 << 20, "idle")
        receive = [*ANOTHER_CLOCK, *TOOLSTACK, "receive", "--host", str(hosts.destination)]
        ended = toolstack(
            *("migrate", "web", "--host", hosts.source, "--events", tmp_path / "here"),
            *("--to", shlex.join([*receive, "--events", str(tmp_path / "there")])),
        )
        assert ended.code == 0, ended.err
        drawn = called("timeline", tmp_path / "here", tmp_path / "there", "--json").json
        clocks = drawn["clocks"]
        assert clocks["sure"]
        assert abs(clocks["offset_seconds"] - 86_400) <= clocks["error_seconds"]
        assert clocks["error_seconds"] < 1
