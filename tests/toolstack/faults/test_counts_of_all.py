"""The first try fails, the second succeeds: what counts over all processes of a plan."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.toolstack.stage import Hosts, toolstack
from xen_save_helper.toolstack import Context, Error, SaveResult, domain_suspend
from xen_save_helper.toolstack.faults.helper_program import FaultyHelper, helper_plan

PLAN = "suspend:before-answer#1 of all=exit(3)"


def test_by_the_api(hosts: Hosts, tmp_path: Path) -> None:
    helper = FaultyHelper(tmp_path, helper_plan(PLAN))
    ctx = Context.open(f"sim:{hosts.source}", program=helper.program)
    domid = hosts.guest()

    def save() -> SaveResult:
        with open("/dev/null", "wb") as null:
            saved = asyncio.run(domain_suspend(ctx, domid, null.fileno()))
        ctx.host.resume(domid)
        return saved

    assert [save().rc for _ in range(3)] == [Error.FAIL, Error.OK, Error.OK]
    assert helper.fired == [PLAN]


@pytest.mark.parametrize("where", ["in the plan", "next to its file"])
def test_by_the_environment(hosts: Hosts, tmp_path: Path, where: str) -> None:
    """Each command, and each helper, reads the plan anew."""
    hosts.guest()
    file = tmp_path / "plan"
    file.write_text(PLAN)
    given = f"@{file}" if where == "next to its file" else f"{PLAN}; counts={tmp_path / 'counts'}"
    environment = {**os.environ, "XEN_SAVE_HELPER_FAULTS": given}

    def save() -> int:
        command = ("save", "g", tmp_path / "image", "-c", "--host", hosts.source)
        return toolstack(*command, env=environment).code

    assert [save(), save(), save()] == [1, 0, 0]
    counts = tmp_path / ("plan.counts" if where == "next to its file" else "counts")
    counts.unlink()
    assert save() == 1, "and so from the beginning"


def test_without_a_place_it_is_refused(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    environment = {**os.environ, "XEN_SAVE_HELPER_FAULTS": "controller/log:heard#1 of all=kill"}
    ended = toolstack("save", "g", tmp_path / "image", "--host", hosts.source, env=environment)
    assert ended.code == 2
    assert "name one in the plan, as in counts=/tmp/counts" in ended.line
