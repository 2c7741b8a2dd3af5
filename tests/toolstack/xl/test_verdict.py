"""What a restore or postcopy needs at the destination is known before the first page: refused there
in words, the guest runs on here, and nothing is left at either end."""

from __future__ import annotations

import platform
import struct
import sys
import time
from pathlib import Path

import pytest

from tests import trace_lines
from tests.toolstack.stage import TOOLSTACK, Ended, Hosts, called
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams.xl_handshake import BANNER, VERDICT, Verdict, encode_verdict

BANNER_SAID = f"printf '{BANNER.data.decode().strip()}\\n'"

SECCOMP = """
import ctypes, errno, os, struct, sys
number = {number}
# ld [nr]; jeq number: return ERRNO(EPERM); return ALLOW
code = b"".join(struct.pack("<HBBI", *line) for line in (
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.EPERM),
    (0x06, 0, 0, 0x7FFF0000)))
buffer = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("<H6xQ", 4, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command without userfaultfd(2), as a container or a service may have it."""


def migrate(hosts: Hosts, *more: object, to: object = None) -> Ended:
    return called("migrate", "g", "--host", hosts.source, "--to", to or hosts.destination, *more)


def refused(hosts: Hosts, ended: Ended, *words: str) -> None:
    """Nothing was sent, the guest runs on here, and one line says why."""
    assert ended.code == 1, ended
    for word in words:
        assert word in ended.line
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.at_source.verify(hosts.at_source.find("g"), 30).memory_ok
    assert hosts.journals() == []


@pytest.fixture
def without_userfaultfd(tmp_path: Path) -> str:
    number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
    script = tmp_path / "seccomp.py"
    script.write_text(SECCOMP.format(number=number))
    return f"{sys.executable} {script}"


def test_a_receiver_that_may_not_page_says_so_before_the_first_page(
    hosts: Hosts, without_userfaultfd: str
) -> None:
    hosts.guest()
    command = " ".join([without_userfaultfd, *TOOLSTACK])
    receiver = f"exec {command} receive --host {hosts.destination}"
    ended = migrate(hosts, "--postcopy", to=receiver)
    refused(hosts, ended, "userfaultfd(2): Operation not permitted", "seccomp")
    assert hosts.states(hosts.at_destination) == {}
    told = migrate(hosts, "--postcopy", "--json", to=receiver)
    assert told.json["postcopy_transitioned"] == "never"
    assert told.json["bytes_sent"] == 0
    # Only postcopy needs it.
    assert migrate(hosts, to=receiver).code == 0


def test_a_reason_of_the_receiver_is_told_over_a_command(hosts: Hosts) -> None:
    hosts.guest()
    hosts.at_destination.create_guest("g", 2 << 20, "idle")
    receiver = f"exec {' '.join(TOOLSTACK)} receive --host {hosts.destination}"
    for more in ((), ("--postcopy",)):
        ended = migrate(hosts, *more, to=receiver)
        refused(hosts, ended, "the destination refuses the guest", "there is another guest 'g'")
        assert ended.err.count("another guest") == 1
    assert hosts.states(hosts.at_destination) == {"g": "running"}


def test_a_receiver_without_descriptors_refuses(unharmed: Hosts) -> None:
    receiver = f"ulimit -n 24; exec {' '.join(TOOLSTACK)} receive --host {unharmed.destination}"
    ended = migrate(unharmed, to=receiver)
    refused(unharmed, ended, "may have 24 descriptors", "ulimit -n")
    assert unharmed.states(unharmed.at_destination) == {}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        pytest.param("cat >/dev/null", "did not come within 1 s", id="as xl: nothing"),
        pytest.param("head -c 100 >/dev/null; head -c 999 /dev/zero; cat >/dev/null",
                     "instead of", id="something else"),
    ],
)  # fmt: skip
def test_a_receiver_that_knows_nothing_of_postcopy(unharmed: Hosts, said: str, words: str) -> None:
    started = time.monotonic()
    ended = migrate(unharmed, "--postcopy", "--limit=handshake=1", to=f"{BANNER_SAID}; {said}")
    assert time.monotonic() - started < 20
    refused(
        unharmed, ended, "the receiver did not say whether it can do postcopy; xl's cannot", words
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(struct.pack("<BH", 3, 6) + b"a\x1b[2Jb", "a [2Jb", id="no terminal's codes"),
        pytest.param(struct.pack("<BH", 3, 0xFFFF) + b"x" * 70000, "want 1 to 1024", id="length"),
        pytest.param(struct.pack("<BH", 0, 5) + b"hello", "want 0 to 0", id="accepted, but"),
        pytest.param(struct.pack("<BH", 3, 2) + b"\xff\xfe", "not UTF-8", id="no text"),
        pytest.param(b"\3", "closed the link", id="cut"),
    ],
)
def test_a_receiver_that_lies(unharmed: Hosts, tmp_path: Path, body: bytes, words: str) -> None:
    verdict = tmp_path / "verdict"
    verdict.write_bytes(VERDICT.data + body)
    command = f"{BANNER_SAID}; head -c 64 >/dev/null; cat {verdict}"
    refused(unharmed, migrate(unharmed, to=command), words)


@pytest.mark.parametrize(
    ("told", "rc"),
    [
        pytest.param(Error.NOMEM, Error.NOMEM, id="its own"),
        pytest.param(Error.ABORTED, Error.FAIL, id="cancelled there, not here"),
    ],
)
def test_the_rc_of_a_refusal(unharmed: Hosts, tmp_path: Path, told: Error, rc: Error) -> None:
    verdict = tmp_path / "verdict"
    verdict.write_bytes(encode_verdict(Verdict(told, "interrupted")))
    command = f"{BANNER_SAID}; head -c 64 >/dev/null; cat {verdict}; cat >/dev/null"
    ended = migrate(unharmed, "--json", to=command)
    refused(unharmed, ended, "the destination refuses the guest: interrupted")
    assert ended.json["rc"] == rc


@pytest.mark.parametrize(
    ("said", "words"),
    [
        pytest.param("cat >/dev/null", "word that it receives did not come within 1 s", id="none"),
        pytest.param("head -c 99999 /dev/zero; cat >/dev/null", "instead of", id="another"),
        pytest.param("exit 3", "closed the link", id="gone"),
    ],
)
def test_without_a_word_that_it_is_received_the_guest_runs_on(
    unharmed: Hosts, tmp_path: Path, said: str, words: str
) -> None:
    verdict, events = tmp_path / "verdict", tmp_path / "events"
    verdict.write_bytes(encode_verdict(Verdict(0, "")))
    command = f"{BANNER_SAID}; head -c 64 >/dev/null; cat {verdict}; {said}"
    limits = ("--limit=handshake=1", "--max-rounds", "0", "--events", events)
    ended = migrate(unharmed, *limits, to=command)
    refused(unharmed, ended, words)
    assert "suspend_request" not in {event["event"] for event in trace_lines.read(events)}


def test_a_guest_that_no_simulated_host_can_have_is_refused(hosts: Hosts) -> None:
    """Within the verdict, too: nothing is made first."""
    domid = hosts.guest()
    host = hosts.at_source
    path = host.directory / "domains" / str(domid) / "config.json"
    path.write_text(path.read_text().replace('"pvh"', '"pv"').replace('"hvm"', '"pv"'))
    ended = migrate(hosts)
    assert ended.code == 1
    assert "only pvh and hvm guests" in ended.line
    assert "refuses the guest" in ended.line
