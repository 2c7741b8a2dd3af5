"""Shards, and what is made of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.toolstack.campaign.judge.verdicts import verdict
from tests.toolstack.campaign.test_campaign import lines_of, run
from tests.toolstack.stage import Ended, called
from xen_save_helper.toolstack.campaign.campaign import Selection, State
from xen_save_helper.toolstack.campaign.matrix import MODES, cells
from xen_save_helper.toolstack.campaign.shards import Shard

ALL = cells()
SAVES = Selection(("save",), "suspend:*")


@given(of=st.integers(1, 12), start=st.integers(0, len(ALL)), many=st.integers(0, 60))
def test_each_cell_is_in_one_shard_and_none_has_more(of: int, start: int, many: int) -> None:
    some = ALL[start : start + many]
    parts = [Shard(number, of).part(some) for number in range(1, of + 1)]
    assert Counter(cell for part in parts for cell in part) == Counter(some)
    sizes = list(map(len, parts))
    assert max(sizes) - min(sizes) <= 1
    for part in parts:
        assert part == [cell for cell in some if cell in set(part)]


def test_no_shard_has_all_that_is_slow() -> None:
    """Stops and stalls wait for a limit."""
    counts = [
        Counter(str(cell.aim.action) for cell in Shard(number, 8).part(ALL))
        for number in range(1, 9)
    ]
    for action in {str(cell.aim.action) for cell in ALL}:
        each = [count[action] for count in counts]
        assert max(each) - min(each) <= len(MODES)  # one in each mode


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "3", "3/", "3/0", "-1/2", "3/8 ", "\u0663/8", "03/8"]
)
def test_what_is_no_shard(tmp_path: Path, text: str) -> None:
    ended = run(f"--shard={text}", "--out", tmp_path / "out")
    assert ended.code == 2
    assert "want K/N" in ended.err
    assert not (tmp_path / "out").exists()


def test_shards_of_other_plans_by_chance_would_not_fit(tmp_path: Path) -> None:
    ended = run("--shard", "1/2", "--random", "4", "--out", tmp_path / "out")
    assert ended.code == 2
    assert "--shard of --random needs --seed S" in ended.line


def test_a_shard_runs_its_part_and_stays_one(tmp_path: Path) -> None:
    """And two shards are the whole, to which nothing is missing."""
    guest = ("--points", "guest/*", "--modes", "save", "--limit", "suspend=1")
    first, second = tmp_path / "1", tmp_path / "2"
    ended = run(*guest, "--shard", "1/2", "--out", first)
    assert ended.code == 0, ended
    assert "at guest/*, shard 1/2: 2 of 2 runs to do" in ended.err
    again = run("--resume", "--json", "--out", first)
    assert (again.code, again.json["cells"]) == (0, 2)
    refused = run("--resume", "--shard", "2/2", "--out", first)
    assert refused.code == 2
    assert "--shard: a resumed campaign keeps" in refused.line
    assert run(*guest, "--shard", "2/2", "--out", second).code == 0
    merged = merge(second, first, out=tmp_path / "all")
    assert merged.code == 0, merged
    assert "all 4 hold" in merged.out
    assert merged.err == ""
    got = {line["cell"]: line for line in lines_of(tmp_path / "all")}
    assert got == {line["cell"]: line for part in (first, second) for line in lines_of(part)}
    assert "<!DOCTYPE html>" in (tmp_path / "all" / "report.html").read_text()
    assert 'tests="4"' in (tmp_path / "all" / "junit.xml").read_text()
    assert run("--resume", "--json", "--out", tmp_path / "all").json["cells"] == 4


def merge(*shards: Path, out: Path) -> Ended:
    return called("faults", "merge", *shards, "--out", out)


def shard(
    directory: Path, number: int, of: int = 3, selection: Selection = SAVES, leave: int = 0
) -> Path:
    """A shard of which all runs hold and `leave` are missing."""
    directory.mkdir()
    state, part = State(directory / "verdicts.jsonl"), Shard(number, of)
    state.begin(selection, part)
    mine = part.part(selection.cells())
    for cell in mine[: len(mine) - leave]:
        state.add(cell, verdict(str(cell.seeded), cell.mode.value))
    return directory


def test_what_is_missing_is_named_and_can_be_made_up_for(tmp_path: Path) -> None:
    parts = [shard(tmp_path / "a", 1), shard(tmp_path / "c", 3, leave=2)]
    torn = tmp_path / "c" / "verdicts.jsonl"
    torn.write_bytes(before := torn.read_bytes() + b'{"cell": "save: sus')
    ended = merge(*parts, out=tmp_path / "out")
    assert ended.code == 1
    assert "shard 2/3 is missing" in ended.err
    assert "shard 3/3 has not made 2 of its runs" in ended.err
    assert f"`faults campaign --resume --out {tmp_path / 'out'}` makes the runs" in ended.err
    missing = len(Shard(2, 3).part(SAVES.cells())) + 2
    assert f"{missing} of {len(SAVES.cells())} have not been run" in ended.out
    assert torn.read_bytes() == before, "a shard is only read"
    merged = State(tmp_path / "out" / "verdicts.jsonl")
    assert (merged.selection, merged.shard) == (SAVES, None)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"number": 1}, "b/verdicts.jsonl and {}/a/verdicts.jsonl are both shard 1/3"),
        ({"number": 2, "of": 4}, "is one of 4 shards, {}/a/verdicts.jsonl one of 3"),
        ({"number": 2, "selection": Selection(("save",), "start")}, "are of different campaigns"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, second: dict[str, int], words: str
) -> None:
    ended = merge(shard(tmp_path / "a", 1), shard(tmp_path / "b", **second), out=tmp_path / "out")
    assert ended.code == 1
    assert words.format(tmp_path) in ended.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "0.0.1"}, "is of version 0.0.1, and this is"),
        ({"shard": "2/3"}, "has runs that shard 2/3 of this campaign does not have: save: "),
        ({"shard": "4/3"}, "line 1: not written by a campaign"),
        ({"shard": None}, "line 1: not written by a campaign"),
    ],
)
def test_another_version_or_plans_that_this_one_does_not_have(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = shard(tmp_path / "a", 1) / "verdicts.jsonl"
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **change}), *lines]) + "\n")
    ended = merge(tmp_path / "a", out=tmp_path / "out")
    assert ended.code == 1
    assert words in ended.line


def test_what_is_no_shard_or_no_place(tmp_path: Path) -> None:
    State(tmp_path / "verdicts.jsonl").begin(SAVES)
    assert "is a whole campaign, not a shard" in merge(tmp_path, out=tmp_path / "out").line
    assert "no campaign is there" in merge(tmp_path / "none", out=tmp_path / "out").line
    one = shard(tmp_path / "a", 1)
    assert "has a campaign already" in merge(one, out=tmp_path).line
    assert merge(out=tmp_path / "out").code == 2
