"""The wrapper, started as libxl starts a device model; QEMU is a script that prints its
arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import xen_save_helper
from xen_save_helper.helper.hypervisors.xen import qemu

WRAPPER = Path(sys.executable).with_name("xen-save-helper-qemu")
STATE = "the device model's state"

QEMU = """#!/bin/bash
if [ "$*" = --version ]; then {version}; exit; fi
echo "pid $$"
grep ^SigIgn: /proc/$$/status
before=
for word; do
    echo "word $word"
    case "$before $word" in
    "-incoming file:"*) echo "state $(cat "${{word#file:}}")" ;;
    "-incoming fd:"[0-9]*) echo "state $(eval "cat <&${{word#fd:}}")" ;;
    esac
    before=$word
done
"""

MakeQemu = Callable[[str], Path]


@pytest.fixture
def make_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeQemu:
    """A QEMU configured for the wrapper, which answers `--version` by a shell command."""

    def make(version: str) -> Path:
        program = tmp_path / "qemu-system-i386"
        program.write_text(QEMU.format(version=version))
        program.chmod(0o755)
        monkeypatch.setenv(qemu.PROGRAM_VARIABLE, str(program))
        return program

    return make


@dataclass(frozen=True)
class Ended:
    """`told` has QEMU's lines by first word, `pid` is that of the process started."""

    status: int
    told: dict[str, list[str]]
    stderr: str
    pid: int


def start(*arguments: str, keep: tuple[int, ...] = ()) -> Ended:
    with subprocess.Popen(
        [WRAPPER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=keep,
    ) as process:
        out, err = process.communicate(timeout=30)
    told: dict[str, list[str]] = {}
    for line in out.splitlines():
        name, _, value = line.partition(" " if ":" not in line.split()[0] else ":")
        told.setdefault(name, []).append(value.strip())
    return Ended(process.returncode, told, err, process.pid)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[int]:
    """A descriptor like libxl's, at the start of a file that is unlinked before QEMU looks."""
    path = tmp_path / "qemu-resume"
    path.write_text(STATE)
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    yield fd
    os.close(fd)


@pytest.mark.parametrize("version", ["11.1.3 (Debian 1:11.1.3+ds-1)", "11.0.0", "12.0.50"])
def test_a_qemu_that_refuses_files_gets_the_state_by_name(
    make_qemu: MakeQemu, state: int, version: str
) -> None:
    make_qemu(f"echo 'QEMU emulator version {version}'")
    before, after = ("-xen-domid", "7", "-no-shutdown"), ("-m", "128", "a b", "fd:0", "")
    ended = start(*before, "-incoming", f"fd:{state}", *after, keep=(state,))
    named = f"file:/proc/self/fd/{state}"
    assert ended.told["word"] == [*before, "-incoming", named, *after]
    assert ended.told["state"] == [STATE]
    assert (ended.status, ended.stderr) == (0, "")


@pytest.mark.parametrize("version", ["7.2.22 (Debian 1:7.2+dfsg-7)", "9.1.0", "10.2.1"])
def test_a_qemu_that_takes_files_gets_the_state_as_it_came(
    make_qemu: MakeQemu, state: int, version: str
) -> None:
    make_qemu(f"echo 'QEMU emulator version {version}'")
    ended = start("-incoming", f"fd:{state}", keep=(state,))
    assert ended.told["word"] == ["-incoming", f"fd:{state}"]
    assert ended.told["state"] == [STATE]


def test_what_is_no_file_is_left_alone(make_qemu: MakeQemu) -> None:
    make_qemu("echo QEMU emulator version 11.1.3")
    reader, writer = os.pipe()
    os.write(writer, STATE.encode())
    os.close(writer)
    ended = start("-incoming", f"fd:{reader}", keep=(reader,))
    os.close(reader)
    assert ended.told["word"] == ["-incoming", f"fd:{reader}"]
    assert ended.told["state"] == [STATE]


@pytest.mark.parametrize(
    "arguments", [(), ("-incoming",), ("-incoming", "fd:name"), ("-incoming", "defer"), ("fd:0",)]
)
def test_a_new_guests_device_model_is_started_with_what_libxl_gives(
    make_qemu: MakeQemu, arguments: tuple[str, ...]
) -> None:
    """Its version is not queried either, which would show as a failure."""
    make_qemu("exit 9")
    ended = start(*arguments)
    assert ended.told.get("word", []) == list(arguments)
    assert (ended.status, ended.stderr) == (0, "")


def test_it_becomes_qemu_and_has_it_ignore_no_more_signals(make_qemu: MakeQemu) -> None:
    """libxl starts a device model with SIGPIPE's default disposition; Python ignores SIGPIPE."""
    make_qemu("echo QEMU emulator version 11.1.3")
    ended = start("-S")
    assert ended.told["pid"] == [str(ended.pid)]
    ignored = int(ended.told["SigIgn"][0], 16)
    assert [s for s in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> s - 1 & 1] == []


def test_without_a_version_the_state_is_handed_on_and_the_log_says_so(
    make_qemu: MakeQemu, state: int
) -> None:
    program = make_qemu("echo no such library >&2; exit 1")
    ended = start("-incoming", f"fd:{state}", keep=(state,))
    assert ended.told["word"] == ["-incoming", f"fd:{state}"]
    assert ended.stderr == (
        "xen-save-helper-qemu: the state is passed on unchanged: "
        f"{program} --version tells no version: no such library\n"
    )


def test_a_qemu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(qemu.PROGRAM_VARIABLE, "/nowhere/qemu")
    ended = start("-S")
    assert ended.status == 127
    assert ended.stderr == "xen-save-helper-qemu: /nowhere/qemu: No such file or directory\n"


def test_it_never_starts_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "qemu-system-i386"
    link.symlink_to(WRAPPER)
    monkeypatch.setenv(qemu.PROGRAM_VARIABLE, str(link))
    ended = start("-S")
    assert ended.status == 127
    assert "is the wrapper itself" in ended.stderr


def test_it_needs_nothing_that_takes_long_to_import() -> None:
    slow = ("subprocess", "numpy", "construct", "asyncio", "zmq", "ctypes", "json")
    script = "import sys, xen_save_helper.helper.qemu_wrapper; "
    script += f"print([n for n in {slow} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(xen_save_helper.__path__[0]).parent,
    )
    assert done.stdout == "[]\n"
