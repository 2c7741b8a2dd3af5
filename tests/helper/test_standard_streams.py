from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helper.libxl_side import HELPER
from xen_save_helper.helper.standard_streams import Output


def _filled(writer: int) -> None:
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)


def test_what_a_hurried_stream_does_not_take_comes_later() -> None:
    reader, writer = os.pipe()
    output = Output(writer, "utf-8")
    _filled(writer)
    output.hurried = True
    print("one\ntwo", file=output)
    output.flush()
    assert not output.takes()
    filled = 0
    while filled < 65536:
        filled += len(os.read(reader, 65536))
    print("three", file=output)
    output.flush()
    assert os.read(reader, 100) == b"one\ntwo\nthree\n"
    assert output.lost() is None
    for fd in (reader, writer):
        os.close(fd)


def test_what_it_never_takes_is_lost() -> None:
    reader, writer = os.pipe()
    output = Output(writer, "utf-8")
    _filled(writer)
    output.hurried = True
    print("one", file=output)
    error = output.lost()
    assert error is not None
    assert error.errno == errno.EINTR
    for fd in (reader, writer):
        os.close(fd)


@pytest.mark.timeout(20)
def test_threads_and_a_signals_handler_may_write_at_once() -> None:
    reader, writer = os.pipe()
    output = Output(writer, "utf-8")
    lines, threads = 2000, 4
    came: list[bytes] = []

    def read() -> None:
        while piece := os.read(reader, 1 << 16):
            came.append(piece)

    def write(name: str) -> None:
        for number in range(lines):
            output.write(f"{name} {number}\n")
            output.flush()

    before = signal.signal(signal.SIGALRM, lambda *_: output.write("handler\n"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    with ThreadPoolExecutor(threads + 1) as pool:
        reading = pool.submit(read)
        writing = [pool.submit(write, name) for name in "abcd"[:threads]]
        write("main")
        for one in writing:
            one.result()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        output.flush()
        os.close(writer)
        reading.result()
    os.close(reader)
    told = b"".join(came).decode().splitlines()
    for name in [*"abcd"[:threads], "main"]:
        assert [line for line in told if line.startswith(f"{name} ")] == [
            f"{name} {number}" for number in range(lines)
        ]
    assert told.count("handler") == len(told) - (threads + 1) * lines


def test_no_character_is_too_strange(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        output = Output(file.fileno(), "ascii")
        print("gäste\udcff", file=output)
        output.flush()
    assert (tmp_path / "file").read_bytes() == b"g\\xe4ste\\udcff\n"


@pytest.mark.parametrize(("option", "status"), [("--version", 255), ("--help", 255)])
def test_the_helper_says_that_it_could_not_print(option: str, status: int) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [*HELPER, option], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == status
    assert ended.stderr == "xen-save-helper: stdout: No space left on device\n"


def test_a_complaint_that_cannot_be_printed_leaves_the_helpers_status() -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run([*HELPER, "nonsense"], stderr=full, check=False)
    assert ended.returncode == 255


def test_nothing_lands_on_a_stream_that_was_closed() -> None:
    script = (
        "import os\n"
        "from xen_save_helper.helper.standard_streams import standard_streams\n"
        "with standard_streams():\n"
        "    fd = os.open('/dev/null', os.O_RDONLY)\n"
        "os._exit(fd)\n"
    )

    def close() -> None:
        for fd in (0, 1, 2):
            os.close(fd)

    ended = subprocess.run([sys.executable, "-c", script], preexec_fn=close, check=False)
    assert ended.returncode == 3
