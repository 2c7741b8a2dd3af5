"""`-`, /dev/stdout, /dev/fd/N: the descriptor that is open already, at its position."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import socket
import struct
import subprocess
import termios
from pathlib import Path
from typing import IO, Any

import pytest

from tests.toolstack.stage import TOOLSTACK, Hosts, toolstack
from tests.toolstack.two_hosts import Side, run
from tests.waiting import wait_for
from xen_save_helper.toolstack.aio.file_argument import file_of
from xen_save_helper.toolstack.inspect import walk as inspect
from xen_save_helper.toolstack.xl import save_file


def shell(hosts: Hosts, script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A script in which `tool` is the command on the source, `there` on the destination."""
    tool = " ".join(TOOLSTACK)
    functions = f"""
        tool() {{ name=$1; shift; {tool} "$name" "$@" --host {hosts.source}; }}
        there() {{ name=$1; shift; {tool} "$name" "$@" --host {hosts.destination}; }}
        inspect() {{ {tool} inspect "$@"; }}
    """
    return subprocess.run(
        ["bash", "-c", functions + script],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def streams_in(path: Path) -> list[str]:
    """The names of the guests in a file of whole streams, one after another."""
    names = []
    left = path.read_bytes()
    while left:
        entries = list(inspect.inspect(io.BytesIO(left)))
        names.append(entries[0].summary["name"])
        trailing = [entry for entry in entries if entry.name == "TRAILING"]
        left = left[trailing[0].offset :] if trailing else b""
    return names


def unread(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/proc/thread-self/fd/1"])
def test_two_saves_one_after_another(hosts: Hosts, tmp_path: Path, name: str) -> None:
    hosts.guest("g1", megabytes=2)
    hosts.guest("g2", megabytes=2)
    done = shell(hosts, f"{{ tool save g1 {name} && tool save -c g2 {name}; }} >both", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "g1 is saved to stdout and has ended here",
        "g2 is saved to stdout and is running here",
    ]
    assert streams_in(tmp_path / "both") == ["g1", "g2"]

    done = shell(hosts, f"tool save g2 {name} >>both", tmp_path)
    assert done.returncode == 0, done.stderr
    assert streams_in(tmp_path / "both") == ["g1", "g2", "g2"]
    assert sorted(os.listdir(tmp_path)) == ["both", "destination", "source"]


def test_any_descriptor_and_any_link_to_it(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    (tmp_path / "link").symlink_to("/dev/fd/7")
    done = shell(hosts, "printf before >seven; tool save --json -c g link 7>>seven", tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"file": "/dev/fd/7"' in done.stdout
    data = (tmp_path / "seven").read_bytes()
    assert data.startswith(b"beforeXen saved domain")


def test_through_a_compressor(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    done = shell(hosts, "set -o pipefail; tool save g - | gzip -1 >g.gz", tmp_path)
    assert done.returncode == 0, done.stderr
    assert hosts.states(hosts.at_source) == {}
    done = shell(hosts, "set -o pipefail; zcat g.gz | there restore -", tmp_path)
    assert (done.returncode, done.stdout) == (0, "g is running as domain 1\n"), done.stderr
    assert hosts.at_destination.verify(1, 30).memory_ok


def test_a_file_whose_name_is_a_hyphen(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    done = shell(hosts, "tool save g ./- && there restore ./-", tmp_path)
    assert done.returncode == 0, done.stderr
    assert streams_in(tmp_path / "-") == ["g"]


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/7"])
def test_a_terminal_takes_no_stream(unharmed: Hosts, name: str) -> None:
    ours, theirs = pty.openpty()
    try:
        tool = " ".join([*TOOLSTACK, "save", "g", name, "--host", str(unharmed.source)])
        done = subprocess.run(
            ["bash", "-c", f"exec 7>&1; exec {tool}"],
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 1
    assert "it is a terminal; redirect or pipe it, or name a file" in done.stderr
    assert unharmed.states(unharmed.at_source) == {"g": "running"}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("tool save g - >&-", "to stdout: it is not open for writing"),
        ("tool save g - 1</dev/null", "it is not open for writing"),
        ("tool save g /dev/fd/9", "/dev/fd/9 is not open"),
        ("tool save g /dev/fd/3 --events events", "/dev/fd/3 is not open"),
        ("tool save --json g - | cat >&2", "stdout is for the JSON"),
        ("tool save --json g /proc/self/fd/1 >x", "stdout is for the JSON"),
        ("tool save --json g /dev/fd/7 7>&1 >x 1>&7", "stdout is for the JSON"),
        ("there restore - <&-", "cannot read stdin: it is not open for reading"),
        ("there restore - 0>x", "cannot read stdin: it is not open for reading"),
        ("there restore /dev/fd/7", "/dev/fd/7 is not open"),
        ("inspect - 0>x", "it is not open for reading"),
    ],
)
def test_descriptors_that_will_not_do(
    unharmed: Hosts, tmp_path: Path, script: str, words: str
) -> None:
    done = shell(unharmed, script, tmp_path)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert unharmed.states(unharmed.at_source) == {"g": "running"}
    assert unharmed.states(unharmed.at_destination) == {}


def test_a_reader_that_goes_before_it_has_read_the_end(hosts: Hosts, tmp_path: Path) -> None:
    """What is left fits into the pipe: no write fails."""
    hosts.guest(megabytes=2)
    assert toolstack("save", "-c", "g", tmp_path / "whole", "--host", hosts.source).code == 0
    size = (tmp_path / "whole").stat().st_size
    process = subprocess.Popen(
        [*TOOLSTACK, "save", "g", "-", "--host", str(hosts.source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        left = size - 500
        while left:
            left -= len(os.read(process.stdout.fileno(), left))
        wait_for(lambda: unread(process.stdout) == 500, "all is written")
        process.stdout.close()
        complaint = process.stderr.read().decode()
    assert process.returncode == 1
    assert "the reader of stdout disconnected with" in complaint
    assert "the guest is running here" in complaint
    assert hosts.states(hosts.at_source) == {"g": "running"}


@pytest.mark.parametrize("name", ["/dev/stderr", "/dev/stdout", "-", "/dev/fd/2"])
@pytest.mark.parametrize("into", ["a file", "a pipe", "a socket"])
def test_no_stream_into_the_messages(unharmed: Hosts, tmp_path: Path, name: str, into: str) -> None:
    """A warning in the middle would spoil the stream, and the guest would be gone."""
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("w+b") as file:
        to = {"a file": file, "a pipe": subprocess.PIPE, "a socket": theirs}[into]
        done = subprocess.Popen(
            [*TOOLSTACK, "save", "g", name, "--host", str(unharmed.source)],
            stdout=to,
            stderr=subprocess.STDOUT,
        )
        said, _ = done.communicate(timeout=60)
        theirs.close()
        if into == "a socket":
            said = ours.recv(1 << 20)
        elif into == "a file":
            said = (tmp_path / "file").read_bytes()
    assert done.returncode == 1
    assert said.startswith(b"xen-toolstack: a save into std")
    assert b"would be mixed with the messages on stderr; redirect stderr, or name" in said
    assert unharmed.states(unharmed.at_source) == {"g": "running"}


def test_a_socket_that_is_open_already(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "file").open("wb") as file:
        process = subprocess.Popen(
            [*TOOLSTACK, "save", "g", "/dev/stdout", "--host", str(hosts.source)], stdout=theirs
        )
        theirs.close()
        while data := ours.recv(1 << 20):
            file.write(data)
        assert process.wait(60) == 0
    assert toolstack("restore", tmp_path / "file", "--host", hosts.destination).code == 0


def test_on_the_disk_before_the_guest_ends(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domid = hosts.guest(megabytes=2)
    side = Side(hosts.at_source)
    done: list[str] = []
    sync, destroy = os.fsync, side.host.destroy
    with (tmp_path / "file").open("wb") as file:
        inode = os.fstat(file.fileno()).st_ino

        def synced(fd: int) -> None:
            if os.fstat(fd).st_ino == inode:
                done.append(f"flushed at {os.fstat(fd).st_size}")
            sync(fd)

        def destroyed(domid: int) -> None:
            done.append("ended")
            destroy(domid)

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(side.host, "destroy", destroyed)
        saved: Any = run(save_file.save(side.ctx, domid, file.fileno()))
    assert saved.state is None
    assert done == [f"flushed at {(tmp_path / 'file').stat().st_size}", "ended"]


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_two_restores_one_after_another(hosts: Hosts, tmp_path: Path, name: str) -> None:
    for guest in ("g1", "g2"):
        hosts.guest(guest, megabytes=2)
    assert shell(hosts, "{ tool save g1 -; tool save g2 -; } >both", tmp_path).returncode == 0
    script = f"{{ there restore {name} && there restore -p {name}; }}"
    done = shell(hosts, f"{script} <both", tmp_path)
    assert done.returncode == 0, done.stderr
    assert hosts.states(hosts.at_destination) == {"g1": "running", "g2": "paused"}
    for row in hosts.at_destination.domains():
        hosts.at_destination.destroy(row.domid)
    done = shell(hosts, f"cat both | {script}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert hosts.states(hosts.at_destination) == {"g1": "running", "g2": "paused"}


def test_a_stream_that_begins_in_the_middle_of_a_file(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    assert shell(hosts, "tool save g - >g", tmp_path).returncode == 0
    (tmp_path / "f").write_bytes(b"a line\n" + (tmp_path / "g").read_bytes())
    done = shell(hosts, "{ dd bs=1 count=7 2>/dev/null; inspect -; } <f", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a line" in done.stdout
    done = shell(
        hosts, "exec 8<f; dd bs=1 count=7 <&8 2>/dev/null; there restore /dev/fd/8", tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["restore", "inspect"])
def test_a_terminal_gives_no_stream(hosts: Hosts, command: str) -> None:
    ours, theirs = pty.openpty()
    try:
        host = ["--host", hosts.destination] if command == "restore" else []
        done = toolstack(command, "-", *host, stdin=theirs)
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.code == 1
    assert done.line == (
        "xen-toolstack: cannot read stdin: it is a terminal; redirect or pipe a stream into it, "
        "or name a file"
    )


@pytest.mark.parametrize(
    ("text", "file"),
    [
        *(("-", 0), ("/dev/stdin", 0), ("/dev/fd/0", 0), ("/dev/stdout", 1), ("/dev/fd/1", 1)),
        *(("/proc/self/fd/1", 1), ("/proc/thread-self/fd/1", 1)),
        *(("./-", Path("-")), ("0", Path("0")), ("/proc/self/fd/", None), ("", None)),
    ],
)
def test_names(text: str, file: object) -> None:
    if file is None:
        with pytest.raises((OSError, ValueError)):
            file_of(text, 0)
    else:
        assert file_of(text, 0) == file
