from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helper.test_main import by_hand
from xen_save_helper.ipc_schema.version import version


def check(**variables: str) -> tuple[int, list[str]]:
    """Run `--check`: its exit status, and the lines it prints."""
    done = by_hand("--check", **{f"XEN_SAVE_HELPER_{name}": v for name, v in variables.items()})
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def simulated(tmp_path: Path) -> dict[str, str]:
    return {"HYPERVISOR": f"sim:{tmp_path}", "CONFIG": str(tmp_path / "conf")}


def wrong(lines: list[str]) -> list[str]:
    return [line.removeprefix("wrong: ") for line in lines if line.startswith("wrong: ")]


def row(lines: list[str], name: str) -> str:
    """What it says about a setting: its value, and where it comes from."""
    (found,) = (line for line in lines if line.split()[:1] == [f"XEN_SAVE_HELPER_{name}"])
    return " ".join(found.split()[1:])


def test_each_setting_is_told_with_where_it_comes_from(tmp_path: Path) -> None:
    conf, events = tmp_path / "conf", tmp_path / "events"
    conf.write_text(f"# ours\nXEN_SAVE_HELPER_EVENTS={events}\nXEN_SAVE_HELPER_ABORT_AFTER=9\n")
    status, lines = check(**simulated(tmp_path), ABORT_AFTER="7", FAULTS="suspend:after-send=kill")
    assert status == 0, lines
    assert lines[0] == f"xen-save-helper {version()}"
    assert lines[-1] == "no problems found"
    assert row(lines, "EVENTS") == f"{events} ({conf}, line 2)"
    assert row(lines, "ABORT_AFTER") == "7 (environment)"
    assert row(lines, "FAULTS") == "suspend:after-send=kill (environment)"
    assert row(lines, "STREAM_STALL") == "no limit (default)"
    assert row(lines, "ANSWER_LIMIT") == "600 (default)"
    assert row(lines, "MAX_ITERATIONS") == "not set (default)"
    assert not events.exists(), "a check leaves nothing behind"


def test_an_events_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "conf").touch()
    events = tmp_path / "events"
    events.write_text("before\n")
    assert check(**simulated(tmp_path), EVENTS=str(events))[0] == 0
    assert events.read_text() == "before\n"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("EVNTS", "x", "'XEN_SAVE_HELPER_EVNTS', ignored; did you mean XEN_SAVE_HELPER_EVENTS?"),
        ("STREAM_STALL", "1m", "want seconds, at most 2000000"),
        ("EVENTS", "/nonexistent/e", "No such file or directory: saves go on without a trace"),
        ("FAULTS", "herd=kill", "there is no point 'herd'"),
        ("FAULTS", "@/nonexistent/plan", "No such file or directory"),
        ("DIALECT", "klingon", "want one of mainline"),
        ("HYPERVISOR", "kvm", "want xen, or sim: and a host's directory: every save fails"),
        ("DEVICE_MODEL", "/nonexistent/qemu", "want a program's path, or unchecked"),
        ("POSTCOPY", "192.0.2.7", "requested address: migrations go on without postcopy"),
        ("CONFIG", "/nonexistent/conf", "no such file"),
    ],
)
def test_what_is_wrong_is_told_with_the_way_out(
    tmp_path: Path, name: str, value: str, problem: str
) -> None:
    (tmp_path / "conf").touch()
    status, lines = check(**{**simulated(tmp_path), name: value})
    assert status == 1
    (told,) = wrong(lines)
    assert value in told or name in told
    assert problem in told


def test_without_xen_it_says_so() -> None:
    if os.path.exists("/sys/hypervisor/version"):
        pytest.skip("this machine runs Xen")
    status, lines = check(CONFIG=os.devnull)
    assert status == 1
    assert wrong(lines)[0].startswith("no Xen here: /sys/hypervisor/version is missing")
