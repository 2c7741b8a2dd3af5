from __future__ import annotations

from pathlib import Path

import pytest

from xen_save_helper.helper.settings import Found, Given, Settings, read_settings


def found_in(**variables: str) -> Found:
    return read_settings({f"XEN_SAVE_HELPER_{name}": value for name, value in variables.items()})


def read(**variables: str) -> Settings:
    found = found_in(**variables)
    assert found.problems == ()
    return found.settings


def test_without_anything_the_defaults_hold() -> None:
    settings = read()
    assert settings == Settings()
    assert (settings.hypervisor, settings.events) == ("xen", "")
    assert (settings.stream_stall, settings.answer_limit) == (None, None)
    assert settings[6:10] == (None, None, None, None)


def test_each_setting_is_a_variable() -> None:
    settings = read(
        EVENTS="/tmp/e",
        DIALECT="mainline",
        HYPERVISOR="sim:/tmp/h",
        STREAM_STALL="2.5",
        ANSWER_LIMIT="9",
        FAULTS="hello=kill",
        MAX_ITERATIONS="7",
        DIRTY_THRESHOLD="0",
        MAX_DOWNTIME_MS="300",
    )
    assert settings == Settings(
        "/tmp/e", "hello=kill", "mainline", "sim:/tmp/h", 2.5, 9.0, 7, 0, 300, None
    )
    assert read(ABORT_AFTER="3").abort_after == 3
    assert read(DEVICE_MODEL="/usr/bin/qemu").device_model == "/usr/bin/qemu"
    assert read(MISSING_CPU_FEATURES="ignore").missing_cpu_features == "ignore"
    assert read(ENGINE="own").engine == "own"


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("192.0.2.7", ("192.0.2.7", 0)),
        ("192.0.2.7:4567", ("192.0.2.7", 4567)),
        ("2001:db8::7", ("2001:db8::7", 0)),
        ("[2001:db8::7]", ("2001:db8::7", 0)),
        ("[2001:db8::7]:4567", ("2001:db8::7", 4567)),
    ],
)
def test_where_a_page_server_listens(text: str, listen: tuple[str, int]) -> None:
    assert read(POSTCOPY=text).postcopy == listen


@pytest.mark.parametrize(
    "text", ["1", "here", "192.0.2.7:", "192.0.2.7:70000", "192.0.2.7:-1", ":4567", "[::1]:x"]
)
def test_a_place_where_nobody_can_listen_is_named(text: str) -> None:
    found = found_in(POSTCOPY=text)
    assert found.settings.postcopy is None
    (problem,) = found.problems
    assert "want an IP address of this host, and perhaps :PORT; ignored" in problem


def test_an_empty_variable_is_none() -> None:
    assert read(MAX_ITERATIONS="", EVENTS="") == Settings()


def test_the_environment_comes_before_the_file(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text(
        "# the policy of this host\n"
        "\n"
        "XEN_SAVE_HELPER_MAX_ITERATIONS=3\n"
        "  XEN_SAVE_HELPER_EVENTS = /tmp/of the file  \n"
        "XEN_SAVE_HELPER_DIRTY_THRESHOLD=\n"
    )
    settings = read(CONFIG=str(conf), MAX_ITERATIONS="9")
    assert settings == Settings(events="/tmp/of the file", max_iterations=9)


WRONG = [
    ("MAX_ITERATIONS", "0", "a whole number from 1 on"),
    ("MAX_ITERATIONS", "-1", "a whole number from 1 on"),
    ("ABORT_AFTER", "many", "a whole number from 1 on"),
    ("DIRTY_THRESHOLD", "1.5", "a whole number from 0 on"),
    ("MAX_DOWNTIME_MS", str(2**31), "a whole number from 1 on"),
    ("STREAM_STALL", "nan", "seconds, at most 2000000, 0 for no limit"),
    ("STREAM_STALL", "-1", "seconds, at most 2000000, 0 for no limit"),
    ("STREAM_STALL", "1e9", "seconds, at most 2000000, 0 for no limit"),
]


@pytest.mark.parametrize(("name", "value", "want"), WRONG)
def test_a_value_that_cannot_be_is_named_and_passed_over(name: str, value: str, want: str) -> None:
    found = found_in(**{name: value, "ANSWER_LIMIT": "9"})
    assert found.settings == Settings(answer_limit=9.0)
    assert found.problems == (
        f"environment: XEN_SAVE_HELPER_{name}={value!r}: want {want}; ignored",
    )
    assert found.given == {"XEN_SAVE_HELPER_ANSWER_LIMIT": Given("environment", "9")}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "XEN_SAVE_HELPER_MAX_ITERATION=3",
            "unknown setting 'XEN_SAVE_HELPER_MAX_ITERATION', ignored; "
            "did you mean XEN_SAVE_HELPER_MAX_ITERATIONS?",
        ),
        ("XEN_SAVE_HELPER_CONFIG=/tmp/other", "unknown setting 'XEN_SAVE_HELPER_CONFIG'"),
        ("MAX_ITERATIONS=3", "did you mean XEN_SAVE_HELPER_MAX_ITERATIONS?"),
        ("XENSAVE_HELPER_EVENTS=/tmp/e", "did you mean XEN_SAVE_HELPER_EVENTS?"),
        ("colour=blue", "unknown setting 'colour', ignored; there are XEN_SAVE_HELPER_"),
        ("XEN_SAVE_HELPER_MAX_ITERATIONS", "want NAME=VALUE"),
        ("XEN_SAVE_HELPER_MAX_ITERATIONS=x", "XEN_SAVE_HELPER_MAX_ITERATIONS='x': want a whole"),
    ],
)
def test_a_wrong_line_is_named_and_passed_over(tmp_path: Path, line: str, problem: str) -> None:
    conf = tmp_path / "conf"
    conf.write_text(f"# one\n{line}\nXEN_SAVE_HELPER_ANSWER_LIMIT=9\n")
    found = found_in(CONFIG=str(conf))
    assert found.settings == Settings(answer_limit=9.0)
    (told,) = found.problems
    assert told.startswith(f"{conf}, line 2: ")
    assert problem in told
    where = f"{conf}, line 3"
    assert found.given == {"XEN_SAVE_HELPER_ANSWER_LIMIT": Given(where, "9")}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("XEN_SAVE_HELPER_EVNTS", "XEN_SAVE_HELPER_EVENTS"),
        ("XEN_SAVE_HELPER_STALL", "XEN_SAVE_HELPER_STREAM_STALL"),
        ("XEN_SAVE_HELPER_MAX_DOWNTIME", "XEN_SAVE_HELPER_MAX_DOWNTIME_MS"),
        ("XEN_SAVE_HELPER_CONFG", "XEN_SAVE_HELPER_CONFIG"),
        ("XEN_SAVEHELPER_EVENTS", "XEN_SAVE_HELPER_EVENTS"),
        ("xen_save_helper_events", "XEN_SAVE_HELPER_EVENTS"),
    ],
)
def test_a_misspelt_variable_is_told_of(name: str, near: str) -> None:
    found = read_settings({name: "1", "XEN_TOOLSTACK_HOST": "/tmp/h", "LIBXL_SAVE_HELPER": "/x"})
    assert found.settings == Settings()
    assert found.problems == (
        f"environment: unknown setting {name!r}, ignored; did you mean {near}?",
    )


def test_the_device_model_wrappers_variable_is_no_misspelt_one() -> None:
    assert found_in(QEMU="/usr/bin/qemu-system-i386").problems == ()


def test_a_misspelt_variable_that_is_empty_is_none() -> None:
    assert found_in(EVNTS="").problems == ()


def test_a_file_that_is_named_and_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert found_in(CONFIG=str(none)).problems == (f"XEN_SAVE_HELPER_CONFIG={none}: no such file",)
    found = found_in(CONFIG=str(tmp_path), MAX_ITERATIONS="9")
    assert found.problems == (f"{tmp_path}: Is a directory: all of it is ignored",)
    assert found.settings == Settings(max_iterations=9)


def test_of_two_ends_of_precopy_the_one_that_spares_the_guest_holds() -> None:
    found = found_in(MAX_ITERATIONS="3", ABORT_AFTER="4")
    assert found.settings == Settings(abort_after=4)
    (told,) = found.problems
    assert told.startswith(
        "environment: XEN_SAVE_HELPER_MAX_ITERATIONS is ignored in favour of "
        "XEN_SAVE_HELPER_ABORT_AFTER"
    )


def test_of_two_ends_of_precopy_the_environments_comes_first(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text("XEN_SAVE_HELPER_ABORT_AFTER=4\n")
    found = found_in(CONFIG=str(conf), MAX_ITERATIONS="3")
    assert found.settings == Settings(max_iterations=3)
    (told,) = found.problems
    assert told.startswith(f"{conf}, line 1: XEN_SAVE_HELPER_ABORT_AFTER is ignored in favour of")
