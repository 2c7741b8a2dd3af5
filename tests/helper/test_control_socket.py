"""The control socket, asked by strangers: the one that works is never disturbed."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import pytest

from tests.unavailable import unavailable
from tests.waiting import wait_for
from xen_save_helper.helper.control_socket import ControlSocket
from xen_save_helper.ipc_schema.control import (
    LONGEST_LINE,
    SOCKET,
    Ask,
    Identity,
    Role,
    encode_line,
)
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError, RefusedError

pytestmark = pytest.mark.usefixtures("no_leaks")

NOBODY: Final = 65534
ME: Final = Identity(Role.PAGER, 7, "web/1 é", os.getpid())


def answer(ask: Ask, request: Mapping[str, Any]) -> Mapping[str, Any]:
    if ask is Ask.ABANDON:
        raise OSError("not now")
    return {"asked": ask.value, "blob": "x" * int(request.get("size", 0))}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / ("control" * 20)


@pytest.fixture
def served(directory: Path) -> Iterator[Path]:
    """The socket's path, with a longer one than an address can have."""
    with closing(ControlSocket(str(directory), ME, answer, lambda: None)):
        yield directory / f"{ME.name}.sock"
    assert os.listdir(directory) == []


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(path.parent, os.O_PATH)
    sock.connect(f"/proc/self/fd/{fd}/{path.name}")
    os.close(fd)
    sock.settimeout(10)
    return sock


def works(directory: Path) -> bool:
    return control.ask(directory, ME, Ask.STATUS)["asked"] == "status"


def test_who_may_look(served: Path) -> None:
    assert stat.S_IMODE(served.parent.stat().st_mode) == 0o700
    assert control.processes(served.parent) == [ME]
    with pytest.raises(OSError, match=r"pager-7-\d+: not now"):
        control.ask(served.parent, ME, Ask.ABANDON)


@pytest.mark.parametrize(
    "garbage",
    [
        b"[" * 60_000 + b"\n",
        b'{"ask":' * 9_000 + b"\n",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"ask": "money"}\n',
        b'{"ask": 7}\n',
        b"null\n",
    ],
)
def test_what_is_no_request_is_answered_as_that(served: Path, garbage: bytes) -> None:
    with connected(served) as sock:
        sock.sendall(garbage)
        assert sock.recv(LONGEST_LINE).startswith(b'{"error": ')
        # It may do better.
        sock.sendall(b'{"ask": "status"}\n')
        assert sock.recv(LONGEST_LINE).startswith(b'{"asked": "status"')


def closed_while_sending(sock: socket.socket, data: bytes) -> bool:
    """Whether it is closed before it has been sent 10,000 times."""
    try:
        for _ in range(10_000):
            sock.sendall(data)
    except ConnectionError:
        return True
    return False


def test_a_line_without_an_end(served: Path) -> None:
    with connected(served) as sock:
        assert closed_while_sending(sock, b"x" * LONGEST_LINE)
        assert works(served.parent)


def test_who_asks_and_does_not_read(served: Path) -> None:
    with connected(served) as sock:
        assert closed_while_sending(sock, b'{"ask": "status", "size": 60000}\n')
        assert works(served.parent)


def test_many_at_once(served: Path) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connected(served))
        assert works(served.parent)


def test_however_many_say_nothing_who_asks_is_answered(served: Path) -> None:
    with ExitStack() as stack:
        asking = stack.enter_context(connected(served))
        for _ in range(300):
            stack.enter_context(connected(served))
            asking.sendall(b'{"ask": "status"}\n')
            assert asking.recv(LONGEST_LINE)
        assert works(served.parent)


def test_when_all_wait_for_the_end_another_is_told_why_it_is_not_answered(served: Path) -> None:
    with ExitStack() as stack:
        for _ in range(128):
            waiting = stack.enter_context(connected(served))
            waiting.sendall(b'{"ask": "wait"}\n{"ask": "status"}\n')
            assert waiting.recv(LONGEST_LINE).startswith(b'{"asked": "status"')
        with pytest.raises(RefusedError, match="128 others wait for its end already"):
            control.ask(served.parent, ME, Ask.STATUS)

    def room() -> bool:
        try:
            return works(served.parent)
        except RefusedError:
            return False

    wait_for(room, "there is room again")


def test_who_is_refused_before_it_has_asked_hears_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / (ME.name + SOCKET)))
        listener.listen()
        connect = control.connect

        def refused(*arguments: Any) -> None:
            connect(*arguments)
            with listener.accept()[0] as sock:
                sock.sendall(encode_line({"error": "no room"}))

        monkeypatch.setattr(control, "connect", refused)
        with pytest.raises(RefusedError, match="no room"):
            control.ask(tmp_path, ME, Ask.STATUS)


def test_what_is_destroyed_while_it_says_how_it_has_ended_is_looked_for_by_nobody(
    directory: Path,
) -> None:
    lives = iter([True, False])
    served = ControlSocket(str(directory), ME, answer, lambda: None)
    served.close("no such domain", leaves=lambda: next(lives))
    assert os.listdir(directory) == []


def test_another_user(served: Path) -> None:
    if os.geteuid():
        unavailable("to be another user needs root")
    served.parent.chmod(0o755)
    served.chmod(0o777)
    script = (
        "import os, socket, sys\n"
        f"os.chdir({str(served.parent)!r})\n"
        f"os.setuid({NOBODY})\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
        f"sock.connect({served.name!r})\n"
        "try:\n"
        '    sock.sendall(b\'{"ask": "status"}\\n\')\n'
        "    print(sock.recv(100))\n"
        "except ConnectionError:\n"
        "    print(b'')\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30
    )
    assert (told.stdout, told.returncode) == ("b''\n", 0), told.stderr
    assert works(served.parent)


def test_a_directory_of_others_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(PermissionError, match="no others may write to it"):
        ControlSocket(str(shared), ME, answer, lambda: None)
    assert os.listdir(shared) == []


@pytest.mark.parametrize("ended", ["", "the link broke"])
def test_who_waits_is_told_how_it_ends(directory: Path, ended: str) -> None:
    served = ControlSocket(str(directory), ME, answer, lambda: None)
    with connected(directory / f"{ME.name}.sock") as sock:
        sock.sendall(b'{"ask": "wait"}\n{"ask": "status"}\n')
        assert b"asked" in sock.recv(LONGEST_LINE)
        served.close(ended)
        told = json.loads(sock.recv(LONGEST_LINE))
        assert told == {"ended": ended, "status": answer(Ask.STATUS, {})}
    left = control.processes(directory)
    assert left == ([ME._replace(ended=ended)] if ended else [])
    with pytest.raises(EndedError) as raised:
        control.status(directory, ME)
    assert raised.value.lost == ended
    control.forget(directory, ME)
    assert os.listdir(directory) == []


def test_what_the_killed_have_left(directory: Path) -> None:
    """Whoever begins removes it, but for what says that pages are lost."""
    directory.mkdir(mode=0o700, parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    lost = f"page-server-3-{dead.pid}.json"
    living = f"save-5-{os.getpid()}.1.json"
    others = ["notes.txt", "a-b.json"]
    killed = [f"helper-save-4-{dead.pid}.sock", f"migrate-new-{dead.pid}.2.json"]
    for name in (lost, living, *others, *killed):
        (directory / name).touch()
    with closing(ControlSocket(str(directory), ME, answer, lambda: None)):
        ours = {f"{ME.name}.json", f"{ME.name}.sock"}
        assert set(os.listdir(directory)) == {lost, living, *others, *ours}
