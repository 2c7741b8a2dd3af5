"""The counts of all processes that carry a plan out, in a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xen_save_helper.helper.faults.plan_files import SharedCounts, counts_of
from xen_save_helper.ipc_schema.faults.plan import PlanError, parse

COUNTER = """
import sys
from xen_save_helper.helper.faults.plan_files import SharedCounts
counts = SharedCounts(sys.argv[1])
for _ in range(200):
    print(counts.next("a fault"), counts.next("another"))
"""


def test_each_process_goes_on_from_the_others(tmp_path: Path) -> None:
    """All at once; each count is given to one of them."""
    path = str(tmp_path / "counts")
    processes = [
        subprocess.Popen([sys.executable, "-c", COUNTER, path], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    given = [line.split() for process in processes for line in process.communicate()[0].split("\n")]
    for fault in (0, 1):
        assert sorted(int(line[fault]) for line in given if line) == list(range(1, 601))
    assert SharedCounts(path).next("a fault") == 601


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/nowhere/counts", "counts=/nowhere/counts: No such file or directory"),
        ("/", "counts=/: Is a directory"),
        ("/dev/null/counts", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be(path: str, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        SharedCounts(path)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\x00", '{"a": "b"}'])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "counts"
    path.write_text(text)
    with pytest.raises(PlanError, match="it holds no counts of faults"):
        SharedCounts(str(path))
    assert path.read_text() == text


def test_a_plan_that_names_none() -> None:
    with pytest.raises(PlanError, match=r"'hello#1 of all=kill': .* counts=/tmp/counts"):
        counts_of(parse("hello#1 of all=kill"))
    assert counts_of(parse("hello#1=kill")) is None
