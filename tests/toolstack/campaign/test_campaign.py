"""Campaigns of real runs, and what is left of them when they are interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.toolstack.campaign.judge.verdicts import verdict
from tests.toolstack.stage import TOOLSTACK, Ended, called, wait_for
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.toolstack.campaign import run_process
from xen_save_helper.toolstack.campaign.campaign import Selection, State, StateError, run_cells
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.matrix import Cell, GuestKind
from xen_save_helper.toolstack.campaign.run import Verdict
from xen_save_helper.toolstack.campaign.worker import PREFIX

pytestmark = pytest.mark.timeout(180)

GUEST = ("--points", "guest/*", "--modes", "save", "--limit", "suspend=1")
"""Four runs: the guest refuses, is late (in time, and not), crashes."""


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where campaigns have their hosts, with room for sockets' paths. Nothing may be left in it,
    and no process of theirs."""
    with tempfile.TemporaryDirectory(prefix="fc-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)
        wait_for(lambda: not of(directory), "the end of the campaign's processes")
        assert [path.name for path in Path(directory).glob(f"{PREFIX}*")] == []


def of(directory: str) -> list[psutil.Process]:
    """The processes of a campaign (all but this one) whose directory for temporary files it is."""
    found = []
    for process in psutil.process_iter():
        try:
            given = process.environ().get("TMPDIR", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if given.startswith(directory) and process.pid != os.getpid():
            found.append(process)
    return found


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """The verdicts that are written whole; none where the campaign has not begun."""
    path = directory / "verdicts.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines[1:] if line.endswith("\n")]


def run(*arguments: object) -> Ended:
    return called("faults", "campaign", *arguments)


class TestTheCommand:
    def test_all_hold(self, tmp_path: Path) -> None:
        ended = run(*GUEST, "--jobs", 3, "--out", tmp_path / "out")
        assert ended.code == 0, ended
        assert ended.out.splitlines()[-2] == "all 4 hold"
        assert "at guest/*: 4 of 4 runs to do" in ended.err
        lines = lines_of(tmp_path / "out")
        assert len({line["cell"] for line in lines}) == 4
        assert all(line["holds"] for line in lines)
        assert "<!DOCTYPE html>" in (tmp_path / "out" / "report.html").read_text()
        assert 'tests="4"' in (tmp_path / "out" / "junit.xml").read_text()
        again = run(*GUEST, "--out", tmp_path / "out")
        assert again.code == 1
        assert "has a campaign already" in again.line
        resumed = run("--resume", "--json", "--out", tmp_path / "out")
        assert resumed.code == 0
        assert (resumed.json["cells"], resumed.json["all_hold"]) == (4, True)
        assert len(lines_of(tmp_path / "out")) == 4

    def test_one_that_does_not_hold_is_in_the_exit_code(self, tmp_path: Path) -> None:
        state = State(tmp_path / "verdicts.jsonl")
        state.begin(Selection(("save",), "exit"))
        first, *others = Selection(("save",), "exit").cells()
        state.add(first, verdict(str(first.plan), "save", "fails"))
        for cell in others:
            state.add(cell, verdict(str(cell.plan), "save"))
        ended = run("--resume", "--out", tmp_path)
        assert ended.code == 1
        assert f"fails: {first}: it is wrong" in ended.out
        assert f"1 of {1 + len(others)} do not hold" in ended.out

    @pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGINT, signal.SIGINT)])
    def test_an_interrupted_one_ends_in_order_and_goes_on(
        self, tmp_path: Path, signals: tuple[signal.Signals, ...]
    ) -> None:
        out = tmp_path / "out"
        command = [*TOOLSTACK, "faults", "campaign", *GUEST, "--jobs", "1", "--out", str(out)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: lines_of(out), "a verdict", 60)
            for number in signals:
                process.send_signal(number)
            _out, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "interrupted" in err
        assert (out / "report.html").exists()
        before = lines_of(out)
        assert 1 <= len(before) < 4
        with (out / "verdicts.jsonl").open("a") as file:
            file.write('{"cell": "save: source.guest/susp')
        ended = run("--resume", "--out", out)
        assert ended.code == 0, ended
        lines = lines_of(out)
        assert lines[: len(before)] == before
        assert len({line["cell"] for line in lines}) == len(lines) == 4

    def test_a_killed_one_leaves_nothing_but_its_verdicts(
        self, tmp_path: Path, temporary: Path
    ) -> None:
        out = tmp_path / "out"
        command = [*TOOLSTACK, "faults", "campaign", *GUEST, "--jobs", "2", "--out", str(out)]
        with (tmp_path / "err").open("w+") as err:
            with subprocess.Popen(command, stderr=err) as process:
                wait_for(lambda: lines_of(out), "a verdict", 60)
                process.kill()
            wait_for(lambda: not of(str(temporary)), "the end of its processes", 60)
            err.seek(0)
            said = err.read().splitlines()
        assert [line for line in said if not line.startswith("xen-toolstack: ")] == []

    def test_a_killed_one_ends_the_runs_that_wait(self, tmp_path: Path, temporary: Path) -> None:
        out = tmp_path / "out"
        waits = ("--points", "suspend:before-answer", "--modes", "save", "--limit", "callback=600")
        command = [*TOOLSTACK, "faults", "campaign", *waits, "--jobs", "1", "--out", str(out)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            # The campaign, the maker of runs, a guest, a controller and a helper.
            wait_for(lambda: len(of(str(temporary))) >= 5, "a run", 60)
            process.kill()
        wait_for(lambda: not of(str(temporary)), "the end of its processes", 15)
        assert list(temporary.glob(f"{PREFIX}*")) == []

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (("--modes", "safe"), 2, "unknown mode 'safe'; want save, "),
            (("--points", "nothing"), 2, "no point of these modes is like 'nothing'"),
            (("--random", "3", "--points", "nothing"), 2, "'nothing' leaves no two faults"),
            (("--seed", "3"), 2, "--seed needs --random N"),
            (("--modes", ""), 2, "unknown mode ''; want save, "),
            (("--points", ""), 2, "no point of these modes is like ''"),
            (("--resume",), 1, "has no campaign to resume"),
            (("--again",), 2, "--again needs --resume"),
            (("--limit", "suspend=0"), 2, "suspend=0"),
        ],
    )
    def test_mistakes(
        self, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
    ) -> None:
        ended = run(*arguments, "--out", tmp_path / "out")
        assert ended.code == code
        assert words in ended.line
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "arguments",
        [("--random", "0"), ("--jobs", "0"), ("--memory", "1"), ("--memory", "1M1"),
         ("--host", "/nowhere"), ("--events", "/dev/null")],
        ids=" ".join,
    )  # fmt: skip
    def test_what_would_be_taken_for_another_wish(
        self, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        ended = run(*arguments, "--out", tmp_path / "out")
        assert ended.code == 2
        assert arguments[0] in ended.err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_no_room_for_sockets_is_said_once_before_it_begins(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = tmp_path / ("x" * 70)
        long.mkdir()
        monkeypatch.setenv("TMPDIR", str(long))
        monkeypatch.setattr(tempfile, "tempdir", None)
        ended = run(*GUEST, "--out", tmp_path / "out")
        assert ended.code == 1
        assert "no room for a socket's path in it; set TMPDIR to a shorter one" in ended.line
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("arguments", [("--modes", "live"), ("--seed", "0")])
    def test_a_resumed_one_is_not_another(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        State(tmp_path / "verdicts.jsonl").begin(Selection(("save",)))
        ended = run("--resume", *arguments, "--out", tmp_path)
        assert ended.code == 2
        assert arguments[0] in ended.line

    def test_a_resumed_one_is_of_the_same_version(self, tmp_path: Path) -> None:
        state = tmp_path / "verdicts.jsonl"
        State(state).begin(Selection(("save",)))
        begun = json.loads(state.read_text())
        state.write_text(json.dumps({**begun, "version": "0.0.1"}) + "\n")
        ended = run("--resume", "--out", tmp_path)
        assert ended.code == 1
        assert f"of version 0.0.1, and this is {begun['version']}" in ended.line

    @pytest.mark.parametrize("kind", ["fails", "did not fire"])
    def test_what_does_not_hold_can_run_again(self, tmp_path: Path, kind: str) -> None:
        selection = Selection(("save",), "guest/*", guest=GuestKind(1 << 20, "idle"))
        state = State(tmp_path / "verdicts.jsonl")
        state.begin(selection)
        first, *others = selection.cells()
        state.add(first, verdict(str(first.plan), "save", kind))
        for cell in others:
            state.add(cell, verdict(str(cell.plan), "save"))
        resumed = run("--resume", "--out", tmp_path)
        assert resumed.code == 1
        assert "0 of 4 runs to do" in resumed.err
        assert "`--resume --again" in resumed.err
        again = run("--resume", "--again", "--out", tmp_path)
        assert again.code == 0, again
        assert "1 of 4 runs to do" in again.err

    def test_of_plans_by_chance_one_that_did_not_fire_is_not_wrong(self, tmp_path: Path) -> None:
        selection = Selection(("save",), "guest/*", random=1)
        state = State(tmp_path / "verdicts.jsonl")
        state.begin(selection)
        (cell,) = selection.cells()
        state.add(cell, verdict(str(cell.plan), "save", "did not fire"))
        again = run("--resume", "--again", "--out", tmp_path)
        assert again.code == 0, again
        assert "0 of 1 runs to do" in again.err


class TestState:
    CELL = Cell(Mode.LIVE, parse("start=stop"))

    def test_what_was_told_is_there_again(self, tmp_path: Path) -> None:
        state = State(tmp_path / "state")
        state.begin(Selection(("live",), "start", random=3, seed=5))
        state.add(self.CELL, verdict("start=stop; seed=7"))
        again = State(tmp_path / "state")
        assert again.selection == state.selection
        told = verdict("start=stop; seed=7")
        assert again.verdicts == state.verdicts == {str(self.CELL): replace(told, events=())}
        assert again.trace(again.verdicts[str(self.CELL)]) == told.events
        assert state.trace(state.verdicts[str(self.CELL)]) == told.events

    @pytest.mark.parametrize("cut", [1, 20, 400])
    def test_a_torn_last_line_is_no_verdict(self, tmp_path: Path, cut: int) -> None:
        path = tmp_path / "state"
        state = State(path)
        state.begin(Selection(("live",)))
        state.add(self.CELL, verdict("start=stop; seed=7"))
        os.truncate(path, path.stat().st_size - cut)
        torn = State(path)
        assert torn.verdicts == {}
        torn.add(self.CELL, verdict("start=stop; seed=7"))
        assert State(path).verdicts == state.verdicts

    def test_a_torn_first_line_is_no_campaign(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text('{"campaign": {"mo')
        assert State(tmp_path / "state").selection is None

    @pytest.mark.parametrize(
        "text", ["hello\n", "[]\n", '{"campaign": {}}\n', '{"t": 1, "event": "save"}\n']
    )
    def test_another_file_is_refused_and_left_alone(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "state").write_text(text)
        with pytest.raises(StateError, match=r"state, line 1: not written by a campaign"):
            State(tmp_path / "state")
        assert (tmp_path / "state").read_text() == text


def verdicts_of(cells: list[Cell], during: Any = None) -> list[Verdict]:
    """Run cells one after another, with `during` at the same time."""
    heard: list[Verdict] = []

    async def both() -> None:
        beside = asyncio.ensure_future(asyncio.to_thread(during)) if during else None
        await run_cells(
            cells,
            Selection(("save",)),
            1,
            lambda _cell, verdict: heard.append(verdict),
            asyncio.Event(),
        )
        if beside is not None:
            await beside

    asyncio.run(both())
    return heard


SAVE = Cell(Mode.SAVE, parse("source.guest/suspend=refuse"))


class TestRuns:
    def test_one_whose_process_dies_is_no_reason_to_end(self, temporary: Path) -> None:
        def kill() -> None:
            wait_for(lambda: list(temporary.glob(f"{PREFIX}*/0/events")), "a run", 60)
            (worker,) = (
                process
                for process in psutil.Process().children()
                if "xen_save_helper.toolstack.campaign.worker" in process.cmdline()
            )
            worker.kill()

        first, second = verdicts_of([SAVE, SAVE], kill)
        assert (first.kind, second.kind) == ("fails", "holds")
        assert (
            "the process that made the run has failed: it ended with exit status -9"
            in (first.problems[0])
        )

    def test_one_that_does_not_end_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_process, "RUN_LIMIT", 1.0)
        stopped = Cell(Mode.SAVE, parse("source/suspend:before-send=stop"))
        (one,) = verdicts_of([stopped])
        assert one.problems == ("the run had not ended after 1 s",)

    def test_one_that_never_comes_to_its_aim_shows_nothing(self) -> None:
        """A save that is not live has no precopy."""
        (one,) = verdicts_of([Cell(Mode.SAVE, parse("source/hello=delay(0); phase.precopy=kill"))])
        assert one.kind == "did not fire"
        assert one.fired == ("source/hello=delay(0)",)

    def test_one_that_cannot_be_made_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        long = Path(tempfile.gettempdir(), "long" * 20)
        long.mkdir()
        monkeypatch.setenv("TMPDIR", str(long))
        (one,) = verdicts_of([SAVE])
        assert one.kind == "fails"
        assert "the run itself failed: ValueError" in one.problems[0]
