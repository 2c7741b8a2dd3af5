"""Our processes, forked from one that has all their modules loaded.

To start an interpreter and load a command's modules takes a quarter of a second of computing, and a
run of the tests starts some thousand. Here a process is a child of whoever starts it, with the
descriptors, environment, directory and command line that it was given, and runs its main module
from the first line, as `python -m` would. It differs in what it costs, and in its memory.

A command has a nursery for the helpers and receivers that it starts, which is one more child of it.
An interpreter of its own has what a helper starts; a process with options or variables that an
interpreter or the dynamic loader reads; and all that a test with `own_interpreters` starts. Where
the system cannot do what this needs (glibc, a kernel with CONFIG_CHECKPOINT_RESTORE), all have one.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import io
import json
import mmap
import os
import pkgutil
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import psutil

from xen_save_helper.toolstack.hosts.simulated import process

MODULES: Final = frozenset(
    {
        "xen_save_helper.helper.hypervisors.simulated.guest",
        "xen_save_helper.helper.main",
        "xen_save_helper.toolstack.campaign.worker",
        "xen_save_helper.toolstack.commands.main",
    }
)
_OPTIONS: Final = {"-P"}
_OF_INTERPRETERS: Final = ("PYTHON", "LD_", "LC_", "LANG")
"""How names of variables begin that count when a process starts."""
_LONGEST: Final = 100_000
_DESCRIPTORS: Final = 250


@contextmanager
def nursery() -> Iterator[None]:
    """Processes that this one starts are forked."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = process._environment()
    with near:
        with far:
            started = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(far.fileno())],
                pass_fds=(far.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
                env=environment,
            )
        with started:
            try:
                if near.recv(1):
                    forks = _Forks(near, environment)
                    with mock.patch.multiple(
                        subprocess, _fork_exec=forks.fork_exec, _USE_POSIX_SPAWN=False
                    ):
                        yield
                else:
                    yield
            finally:
                near.close()


@contextmanager
def own_interpreters() -> Iterator[None]:
    """Processes are started as they are without `nursery`."""
    with mock.patch.object(subprocess, "_fork_exec", _FORK_EXEC):
        yield


def children() -> list[psutil.Process]:
    """Those of this process without the nursery."""
    return [
        child
        for child in psutil.Process().children()
        if b"tests.nursery" not in Path(f"/proc/{child.pid}/cmdline").read_bytes()
    ]


_FORK_EXEC: Final = subprocess._fork_exec  # type: ignore[attr-defined]


class _Forks:
    """Asks the nursery for processes."""

    def __init__(self, nursery: socket.socket, environment: dict[str, str]) -> None:
        self._nursery = nursery
        self._settings = _of_interpreters(os.environb)
        self._paths = {environment["PYTHONPATH"].encode(), os.environb.get(b"PYTHONPATH", b"")}
        self._lock = threading.Lock()

    def fork_exec(self, *request: Any) -> int:
        """As `_posixsubprocess.fork_exec`; returns the pid."""
        (args, _, close_fds, keep, cwd, env, stdin, _, _, stdout, _, stderr, _, stop, _, *rest) = (
            request
        )
        session, group, gid, groups, uid, umask, preexec_fn, *_ = rest
        usual = close_fds and (group, gid, groups, uid, umask, preexec_fn) == _USUAL
        variables = [b"%b=%b" % pair for pair in os.environb.items()] if env is None else env
        words = [os.fsdecode(arg) for arg in args]
        if not (usual and _is_ours(words) and self._has_our_settings(variables)):
            return int(_FORK_EXEC(*request))
        standard = [own if fd < 0 else fd for own, fd in enumerate((stdin, stdout, stderr))]
        passed = [fd for fd in keep if fd != stop]
        asked = {
            "args": words,
            "cwd": os.fsdecode(cwd or os.getcwd()),
            "env": [variable.decode("latin-1") for variable in variables],
            "places": [0, 1, 2, *passed],
            "session": bool(session),
        }
        packet = json.dumps(asked).encode()
        if len(packet) > _LONGEST or len(passed) + 3 > _DESCRIPTORS:
            return int(_FORK_EXEC(*request))
        with self._lock:
            socket.send_fds(self._nursery, [packet], [*standard, *passed])
            return struct.unpack("<i", self._nursery.recv(4))[0]

    def _has_our_settings(self, variables: Sequence[bytes]) -> bool:
        named = dict(variable.split(b"=", 1) for variable in variables)
        path = named.pop(b"PYTHONPATH", b"")
        return path in self._paths and _of_interpreters(named) == self._settings


_USUAL: Final = (-1, None, None, None, -1, None)
"""Group of processes, gid, groups, uid, umask and function before exec."""


def _of_interpreters(named: Any) -> dict[bytes, bytes]:
    names = tuple(name.encode() for name in _OF_INTERPRETERS)
    found = {name: value for name, value in named.items() if name.startswith(names)}
    found.pop(b"PYTHONPATH", None)
    return found


def _is_ours(words: Sequence[str]) -> bool:
    if words[0] != sys.executable or "-m" not in words[:-1]:
        return False
    module = words.index("-m")
    return set(words[1:module]) <= _OPTIONS and words[module + 1] in MODULES


# In the nursery


class _Child:
    """Makes this process's copies children of its parent."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.sbrk.restype = ctypes.c_void_p
        self._libc.pthread_self.restype = ctypes.c_void_p
        # Holds the GIL, as fork() does.
        self._syscall = ctypes.PyDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._clone = ctypes.c_long(_SYS_CLONE[os.uname().machine])
        self._words = (ctypes.c_int * 1024).from_address(self._libc.pthread_self())
        (self._place,) = self._places_of_a_copy() & self._places()
        """Where the C library keeps the thread's tid, and does not see it change."""

    def _places(self) -> set[int]:
        return {place for place, word in enumerate(self._words) if word == os.getpid()}

    def _places_of_a_copy(self) -> set[int]:
        """Of a process with another pid: a small number may be in other places by chance."""
        answer, question = os.pipe()
        with open(answer) as told, open(question, "w") as tells:
            if not (pid := os.fork()):
                tells.write(json.dumps([*self._places()]))
                tells.flush()
                os._exit(0)
            tells.close()
            os.waitpid(pid, 0)
            return set(json.load(told))

    def fork(self) -> int:
        ctypes.pythonapi.PyOS_BeforeFork()
        flags = ctypes.c_ulong(_CLONE_PARENT | signal.SIGCHLD)
        pid = int(self._syscall(self._clone, flags, None, None, None, None))
        if pid:
            ctypes.pythonapi.PyOS_AfterFork_Parent()
        else:
            self._words[self._place] = os.getpid()
            ctypes.pythonapi.PyOS_AfterFork_Child()
        if pid < 0:
            raise OSError(ctypes.get_errno(), "clone")
        return pid

    def call_itself(self, words: Sequence[bytes], variables: Sequence[bytes]) -> None:
        """What /proc says of its command line and environment. Raises OSError."""
        command = b"".join(word + b"\0" for word in words)
        environment = b"".join(variable + b"\0" for variable in variables)
        # It stays until the process has ended.
        memory = mmap.mmap(
            -1, len(command + environment), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        memory.write(command + environment)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        between, end = start + len(command), start + len(command + environment)
        stat = [*map(int, Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[1:])]
        code, stack, data = stat[22:24], stat[24], stat[41:44]
        addresses = (*code, *data, self._libc.sbrk(0), stack, start, between, between, end)
        layout = struct.pack("<11QQIi", *addresses, *_AS_IT_IS)
        held = ctypes.create_string_buffer(layout)
        asked = (_PR_SET_MM, _PR_SET_MM_MAP, ctypes.addressof(held), len(layout), 0)
        if self._libc.prctl(*map(ctypes.c_ulong, asked)):
            raise OSError(ctypes.get_errno(), "PR_SET_MM_MAP")


_SYS_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT: Final = 0x8000
_PR_SET_MM: Final = 35
_PR_SET_MM_MAP: Final = 14
_AS_IT_IS: Final = (0, 0, -1)
"""Auxiliary vector, its size, and program."""


_OF_OTHERS: Final = ("__main__", "pytest_plugin", "build_step")
"""Modules that need what only the tests or a build have."""


def _load_all() -> None:
    import xen_save_helper

    for found in pkgutil.walk_packages(xen_save_helper.__path__, "xen_save_helper."):
        if not found.name.endswith(_OF_OTHERS):
            importlib.import_module(found.name)


def _serve(asked: socket.socket, child: _Child) -> tuple[dict[str, Any], list[int]]:
    """Fork; returns in a process that was asked for, with what it shall be and its descriptors."""
    while True:
        packet, passed, _flags, _address = socket.recv_fds(asked, _LONGEST, _DESCRIPTORS)
        if not packet:
            os._exit(0)
        pid = child.fork()
        if not pid:
            return json.loads(packet), passed
        for fd in passed:
            os.close(fd)
        asked.send(struct.pack("<i", pid))


def _put(passed: Sequence[int], places: Sequence[int]) -> None:
    """Give each descriptor its place, and close all others."""
    above = max(*passed, *places) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in passed]
    for fd, place in zip(moved, places, strict=True):
        os.dup2(fd, place)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in places:
            try:
                os.close(int(name))
            except OSError:
                continue  # that of the listing


def _stream(fd: int, mode: str, errors: str) -> Any:
    buffer = open(fd, mode + "b", closefd=False, buffering=-1)  # noqa: SIM115
    through = bool(os.environ.get("PYTHONUNBUFFERED")) and mode == "w"
    return io.TextIOWrapper(
        buffer, errors=errors, line_buffering=fd == 2 or os.isatty(fd), write_through=through
    )


def _become(request: dict[str, Any], child: _Child) -> None:
    """Be the process that is wanted. Ends as it does."""
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    variables = [variable.encode("latin-1") for variable in request["env"]]
    os.environb.clear()
    os.environb.update(variable.split(b"=", 1) for variable in variables)
    words = request["args"]
    child.call_itself([os.fsencode(word) for word in words], variables)
    sys.stdin = sys.__stdin__ = _stream(0, "r", "strict")
    sys.stdout = sys.__stdout__ = _stream(1, "w", "strict")
    sys.stderr = sys.__stderr__ = _stream(2, "w", "backslashreplace")
    at = words.index("-m")
    sys.orig_argv = words
    sys.argv = ["-m", *words[at + 2 :]]
    if "-P" in words[:at]:
        del sys.path[0]
    else:
        sys.path[0] = request["cwd"]
    if words[at + 1] == _COMMANDS:
        _have_nursery(child)
    # It is loaded a second time, as __main__.
    sys.modules.pop(words[at + 1], None)
    runpy.run_module(words[at + 1], run_name="__main__", alter_sys=True)


def _have_nursery(child: _Child) -> None:
    """Fork one for what this process starts."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        far.close()
        # Out of the way of those who count descriptors.
        high = socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, HIGH))
        near.close()
        forks = _Forks(high, process._environment())
        vars(subprocess).update(_fork_exec=forks.fork_exec, _USE_POSIX_SPAWN=False)
        return
    near.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _put([far.detach()], [_NURSERYS])
    child.call_itself([b"nursery"], [])
    asked = socket.socket(fileno=_NURSERYS)
    request, passed = _serve(asked, child)
    asked.detach()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _put(passed, request["places"])
    _become(request, child)
    raise SystemExit


_COMMANDS: Final = "xen_save_helper.toolstack.commands.main"
HIGH: Final = 900
"""From here on are the descriptors of what is ours, and not the command's."""
_NURSERYS: Final = 3


def _main(fd: int) -> None:
    child = _Child()
    own = (part.split(b"\0")[:-1] for part in map(Path.read_bytes, _OWN))
    child.call_itself(*own)
    _load_all()
    gc.collect()
    gc.freeze()
    asked = socket.socket(fileno=fd)
    asked.send(b"\1")
    request, passed = _serve(asked, child)
    asked.detach()
    _put(passed, request["places"])
    _become(request, child)


_OWN: Final = (Path("/proc/self/cmdline"), Path("/proc/self/environ"))

if __name__ == "__main__":
    _main(int(sys.argv[1]))
