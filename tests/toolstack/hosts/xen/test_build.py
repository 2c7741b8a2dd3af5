"""A domain that `xl` makes while we restore it."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.toolstack.hosts.xen.making_xl import COMPLAINT
from xen_save_helper.ipc_schema.streams import libxl_stream
from xen_save_helper.toolstack.hosts.interface import RestoredGfns, Rings
from xen_save_helper.toolstack.hosts.xen import build
from xen_save_helper.toolstack.hosts.xen.build import DomainBuild

ROOT = Path(__file__).parents[4]
CONFIG = {"c_info": {"type": "pvh", "name": "web", "uuid": "u"}, "b_info": {"max_memkb": 4096}}


@pytest.fixture
def xl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes `xl` one that does what it is told; gives the file with its report."""

    def make(how: str) -> Path:
        program = tmp_path / "xl"
        module = "tests.toolstack.hosts.xen.making_xl"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {module} {how} "$@"\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setenv("REPORT", str(tmp_path / "report"))
        return tmp_path / "report"

    return make


def told(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_xl_makes_it_and_finishes_it_when_it_is_restored(xl: Callable[[str], Path]) -> None:
    report = xl("plain")
    made = DomainBuild(CONFIG, "web--incoming", 60)
    assert (made.domid, made.rings) == (7, Rings(1, 2, 3, 4))
    assert made.static_data_done(2) == 0
    made.finish(RestoredGfns(5, 6), [(b"physmap/1", b"x")], b"QEVM")
    seen = told(report)
    assert seen["config"]["c_info"] == {**CONFIG["c_info"], "name": "web--incoming"}
    assert seen["helper"] == [
        ["static_data_done", {"missing": 2}],
        ["restore_results", {"store_gfn": 5, "console_gfn": 6}],
        ["complete", {"retval": 0, "errnoval": 0}],
    ]
    names, bodies = zip(*seen["records"], strict=True)
    assert names == ("EMULATOR_XENSTORE_DATA", "EMULATOR_CONTEXT", "END")
    xenstore, context = (bytes.fromhex(body) for body in bodies[:2])
    assert libxl_stream.decode_emulator_xenstore_data(xenstore)[2] == [(b"physmap/1", b"x")]
    assert libxl_stream.decode_emulator_context(context)[2] == b"QEVM"


def test_a_guest_without_a_device_model_has_no_records_of_one(xl: Callable[[str], Path]) -> None:
    report = xl("plain")
    DomainBuild(CONFIG, "web", 60).finish(RestoredGfns(5, 6), [], None)
    assert [name for name, _body in told(report)["records"]] == ["END"]


def test_xl_hears_that_it_was_given_up(xl: Callable[[str], Path]) -> None:
    report = xl("plain")
    DomainBuild(CONFIG, "web", 60).abandon()
    assert told(report)["helper"][-1] == [
        "complete",
        {"retval": -1, "errnoval": errno.ECANCELED},
    ]


def test_what_xl_complains_of_is_told(xl: Callable[[str], Path]) -> None:
    xl("fails")
    with pytest.raises(OSError, match=COMPLAINT.rpartition(": ")[2]) as failed:
        DomainBuild(CONFIG, "web", 60)
    assert failed.value.errno == errno.EIO


def test_an_xl_that_never_comes_to_it_is_ended(
    xl: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    xl("waits")
    monkeypatch.setattr(build, "_END_SECONDS", 0.5)
    with pytest.raises(TimeoutError, match=r"xl has not made the domain in 0\.5 s"):
        DomainBuild(CONFIG, "web", 0.5)
