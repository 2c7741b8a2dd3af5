from __future__ import annotations

from pathlib import Path

import pytest

from helper.settings import SettingError, Settings, read_settings


def read(**variables: str) -> Settings:
    return read_settings({f"XEN_SAVE_HELPER_{name}": value for name, value in variables.items()})


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


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("MAX_ITERATIONS", "0", "a whole number from 1 on"),
        ("MAX_ITERATIONS", "-1", "a whole number from 1 on"),
        ("ABORT_AFTER", "many", "a whole number from 1 on"),
        ("DIRTY_THRESHOLD", "1.5", "a whole number from 0 on"),
        ("MAX_DOWNTIME_MS", str(2**31), "a whole number from 1 on"),
        ("STREAM_STALL", "nan", "seconds, at most 2000000, 0 for no limit"),
        ("STREAM_STALL", "-1", "seconds, at most 2000000, 0 for no limit"),
        ("STREAM_STALL", "1e9", "seconds, at most 2000000, 0 for no limit"),
    ],
)
def test_a_value_that_cannot_be_is_named(name: str, value: str, want: str) -> None:
    with pytest.raises(SettingError) as error:
        read(**{name: value})
    assert str(error.value) == f"environment: XEN_SAVE_HELPER_{name}={value!r}: want {want}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("XEN_SAVE_HELPER_MAX_ITERATION=3", "'XEN_SAVE_HELPER_MAX_ITERATION' is no setting; want"),
        ("XEN_SAVE_HELPER_CONFIG=/tmp/other", "'XEN_SAVE_HELPER_CONFIG' is no setting"),
        ("MAX_ITERATIONS=3", "'MAX_ITERATIONS' is no setting"),
        ("XEN_SAVE_HELPER_MAX_ITERATIONS", "want NAME=VALUE"),
        ("XEN_SAVE_HELPER_MAX_ITERATIONS=x", "XEN_SAVE_HELPER_MAX_ITERATIONS='x': want a whole"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    conf = tmp_path / "conf"
    conf.write_text(f"# one\n{line}\n")
    with pytest.raises(SettingError) as error:
        read(CONFIG=str(conf))
    assert str(error.value).startswith(f"{conf}, line 2: ")
    assert problem in str(error.value)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no such file"):
        read(CONFIG=str(tmp_path / "none"))
    with pytest.raises(SettingError, match="Is a directory"):
        read(CONFIG=str(tmp_path))


def test_two_ends_of_precopy_exclude_each_other() -> None:
    with pytest.raises(SettingError, match="exclude each other"):
        read(MAX_ITERATIONS="3", ABORT_AFTER="3")
