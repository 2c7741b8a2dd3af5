"""Peers that lie, on either side of the channel: they are refused, named and ended, and leave
nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from tests.toolstack.helpers import zmtp
from tests.toolstack.helpers.running_helpers import Run, answer, run_helper, scripted
from xen_save_helper.ipc_schema.channel import msgpack_codec
from xen_save_helper.ipc_schema.channel.authentication import NONCE_SIZE, SECRET_SIZE
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation
from xen_save_helper.ipc_schema.channel.msgpack_codec import Envelope
from xen_save_helper.ipc_schema.channel.turn_taking import ControllerEnd
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.helpers.request import PipeHelper
from xen_save_helper.toolstack.limits import Limits

pytestmark = pytest.mark.usefixtures("runtime_directory")

LYING_PIPE_HELPER = Path(__file__).with_name("lying_pipe_helper.py")


def assert_ended(run: Run, rc: int, what: str) -> None:
    assert run.result is not None
    assert run.result.rc == rc
    assert what in run.result.reason
    assert not psutil.pid_exists(run.pid)


class TestALyingHelper:
    """What our controller does about a helper that lies."""

    @pytest.mark.parametrize(
        ("steps", "what"),
        [
            (["start", "second_hello"], "wrong turn: hello"),
            (["start", "skipped_number"], "wrong sequence number: suspend has 9, want 2"),
            (["start", "repeated_number"], "wrong sequence number: suspend has 1, want 2"),
            (["start", "impatient"], "wrong turn: log while an async callback waits"),
            (["start", "answering"], "a message of the other end: reply"),
            (["start", "restoring"], "a message of another operation: restore_results"),
            (["start", "not_provided"], "a callback that is not provided: postcopy_transition"),
            (["start", "garbage"], "not msgpack"),
            (["start", "many_parts"], "2 parts, want one"),
        ],
    )
    def test_the_protocol_is_broken(self, steps: list[str], what: str) -> None:
        run = run_helper(scripted(*steps, "hang"), {"suspend": lambda _: None}, within=20)
        assert_ended(run, Error.FAIL, "the helper broke the protocol: ")
        assert_ended(run, Error.FAIL, what)

    @pytest.mark.parametrize(
        ("step", "what"),
        [
            ("wrong_secret", "wrong secret: hello does not know the secret"),
            ("wrong_version", "wrong version: the helper speaks 99, the controller 1"),
            ("callback_first", "wrong turn: suspend while nothing was said"),
        ],
    )
    def test_a_helper_with_a_bad_hello_is_told_so(self, step: str, what: str) -> None:
        run = run_helper(scripted(step), within=20)
        assert_ended(run, Error.FAIL, f"the controller refused: {what}")
        assert run.event("stranger_refused")["reason"] == what

    @pytest.mark.parametrize("step", ["too_long", "huge_length", "half_a_message"])
    def test_the_connection_is_broken(self, step: str) -> None:
        steps = ["start", step, "hang"] if step == "too_long" else [step]
        before = psutil.Process().memory_info().rss
        run = run_helper(scripted(*steps), limits=Limits(abort=0.3), within=20)
        assert_ended(run, Error.FAIL, "the helper hung up, or sent too long a message")
        assert psutil.Process().memory_info().rss - before < 64 << 20

    def test_half_a_message_and_silence(self) -> None:
        limits = Limits(stream_stall=0.5, callback=0.5, abort=0.3)
        run = run_helper(scripted("half_a_message_and_silence"), limits=limits, within=20)
        assert_ended(run, Error.TIMEDOUT, "has said nothing and moved no byte for")

    def test_half_a_greeting_and_silence(self) -> None:
        run = run_helper(scripted("half_a_greeting"), limits=Limits(helper_start=2), within=20)
        assert_ended(run, Error.TIMEDOUT, "did not say hello within 2 s")

    def test_a_message_after_complete_is_ignored(self) -> None:
        run = run_helper(scripted("start", "after_complete"), within=20)
        assert run.result is not None
        assert run.result.completed
        assert "after the end" not in [fields.get("formatted") for _name, fields in run.heard]


class TestALyingHelperOnThePipes:
    @pytest.mark.parametrize(
        ("how", "what"),
        [
            ("unknown number", "number 99: dialect mainline has no such message"),
            ("malformed body", "pipe message log at offset"),
            ("no body", "body of 0 bytes"),
            ("another operation", "not part of a save"),
            ("impatient", "wrong turn: suspend while an async callback waits"),
            ("not provided", "a callback that is not provided: checkpoint"),
            ("half a message", "in the middle of a message (4 bytes)"),
            ("half a message at its end", "without signalling completion"),
            ("hangs up", "the helper closed its pipe"),
            ("does not complete", "without signalling completion"),
            ("deaf", "Broken pipe"),
        ],
    )
    def test_it_is_ended_with_an_error(
        self, monkeypatch: pytest.MonkeyPatch, how: str, what: str
    ) -> None:
        monkeypatch.setenv("LYING_HOW", how)
        run = run_helper(
            PipeHelper(LYING_PIPE_HELPER, Dialect.MAINLINE),
            {"suspend": answer(1) if how == "deaf" else lambda _: None},
            limits=Limits(abort=0.3),
            within=20,
        )
        assert_ended(run, Error.FAIL, what)

    def test_it_does_not_exit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LYING_HOW", "completes and stays")
        program = PipeHelper(LYING_PIPE_HELPER, Dialect.MAINLINE)
        run = run_helper(program, limits=Limits(abort=0.3), within=20)
        assert_ended(run, Error.TIMEDOUT, "did not end within 0.3 s")
        assert run.result is not None
        assert run.result.completed


class TestAStranger:
    """A second process of the same user that finds the endpoint before the helper does."""

    def test_it_cannot_get_in_and_does_not_disturb(self, runtime_directory: Path) -> None:
        answers: list[str] = []

        def join(run: Run) -> None:
            (endpoint,) = runtime_directory.glob("*/controller")
            assert stat.S_IMODE(endpoint.parent.stat().st_mode) == 0o700
            answers.extend(stranger_says(endpoint, *STRANGE))
            os.kill(run.pid, signal.SIGCONT)

        def started(run: Run) -> None:
            os.kill(run.pid, signal.SIGSTOP)
            threading.Thread(target=join, args=(run,)).start()

        run = run_helper(
            scripted("start", "policy", "suspend", "complete"), at={"helper_started": started}
        )
        assert run.result is not None
        assert (run.result.rc, run.result.completed) == (0, True)
        assert len(answers) == len(STRANGE)
        assert all(answers)
        warnings = [fields["formatted"] for name, fields in run.heard if name == "log"]
        assert sum("a stranger at the helper's endpoint was refused" in w for w in warnings) == len(
            STRANGE
        )

    def test_it_cannot_take_part_later_either(self, runtime_directory: Path) -> None:
        context = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.setsockopt(zmq.RCVTIMEO, 20000)
        answers: list[bytes] = []

        def connect(run: Run) -> None:
            os.kill(run.pid, signal.SIGSTOP)
            (endpoint,) = runtime_directory.glob("*/controller")
            stranger.connect(f"ipc://{endpoint}")
            stranger.send(b"let me in")
            threading.Thread(target=shut_out, args=(run,)).start()

        def shut_out(run: Run) -> None:
            answers.append(stranger.recv())
            os.kill(run.pid, signal.SIGCONT)

        def interfere(run: Run) -> None:
            stranger.send(msgpack_codec.encode(2, "suspend", {}))
            stranger.send(msgpack_codec.encode(2, "complete", {"retval": 0, "errnoval": 0}))
            threading.Thread(target=answer_then, args=(run,)).start()

        def answer_then(run: Run) -> None:
            answers.extend([stranger.recv(), stranger.recv()])
            loop.call_soon_threadsafe(run.helper.async_callback_done, 1)

        def suspended(run: Run) -> None:
            nonlocal loop
            loop = run.helper._loop
            interfere(run)

        loop: Any = None
        try:
            run = run_helper(
                scripted("start", "suspend", "complete"),
                {"suspend": suspended},
                at={"helper_started": connect},
            )
        finally:
            stranger.close(linger=0)
            context.term()
        assert run.result is not None
        assert (run.result.rc, run.result.completed) == (0, True)
        assert run.names.count("suspend") == 1
        reasons = [msgpack_codec.decode(answer).fields["reason"] for answer in answers]
        assert "not msgpack" in reasons[0]
        assert reasons[1:] == ["this controller already has its helper"] * 2


def hello(**change: Any) -> bytes:
    fields = {"version": 1, "pid": 1, "nonce": bytes(NONCE_SIZE), "proof": bytes(32), **change}
    return msgpack_codec.encode(1, "hello", fields)


STRANGE = [
    b"",
    b"garbage",
    hello(),
    hello(version=2),
    hello(nonce=b""),
    msgpack_codec.encode(1, "complete", {"retval": 0, "errnoval": 0}),
    msgpack_codec.encode(1, "refused", {"reason": "you"}),
]


def stranger_says(endpoint: Path, *messages: bytes) -> list[str]:
    """Send the messages; return the reason with which each is refused."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.RCVTIMEO, 20000)
        stranger.connect(f"ipc://{endpoint}")
        reasons = []
        for message in messages:
            stranger.send(message)
            refused = msgpack_codec.decode(stranger.recv())
            assert refused.message.name == "refused"
            reasons.append(refused.fields["reason"])
        return reasons


SECRET = bytes(range(SECRET_SIZE))


@dataclass
class Controller:
    """The controller's end, driven by hand, and our helper's process at the other."""

    process: subprocess.Popen[str]
    lifeline: int
    turns: ControllerEnd
    hear: Callable[[], bytes]
    say: Callable[[bytes], None]

    def greet(self) -> None:
        self.turns.received(msgpack_codec.decode(self.hear()))

    def hear_message(self) -> Envelope:
        envelope = msgpack_codec.decode(self.hear())
        self.turns.received(envelope)
        return envelope

    def start(self, **change: Any) -> None:
        self.greet()
        self.say(
            self.message("start", **{**start_fields(), "proof": self.turns.start_proof(), **change})
        )

    def message(self, name: str, **fields: Any) -> bytes:
        data = msgpack_codec.encode(self.turns.next_seq, name, fields)
        self.turns.sending(name)
        return data

    def exit_status(self, within: float = 20) -> int:
        return self.process.wait(within)

    def errors(self) -> str:
        assert self.process.stderr is not None
        errors = self.process.stderr.read()
        assert "Traceback" not in errors
        return errors


def start_fields() -> dict[str, Any]:
    numbers = ["domid", "xcflags", "cbflags", "stream_type", "store_evtchn", "store_domid"]
    numbers += ["console_evtchn", "console_domid", "bandwidth"]
    return {
        **dict.fromkeys(numbers, 0),
        "operation": Operation.SAVE.value,
        "io_fd": 2,
        "back_fd": -1,
        "hypervisor": "sim:/nonexistent",
        "engine": "own",
        "postcopy": False,
        "missing_cpu_features": "refuse",
        "sparse": False,
        "max_downtime_ms": 0,
        "link": "",
        "control": "",
    }


@contextmanager
def our_helper(
    endpoint: str, hear: Callable[[], bytes], say: Callable[[bytes], None], *options: str
) -> Iterator[Controller]:
    secret_read, lifeline = os.pipe()
    os.write(lifeline, SECRET)
    arguments = ["--connect", endpoint, "--secret-fd", str(secret_read), *options]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "xen_save_helper.helper.main", *arguments],
        pass_fds=[secret_read],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(secret_read)
    turns = ControllerEnd(SECRET, Operation.SAVE, frozenset({"suspend"}))
    controller = Controller(process, lifeline, turns, hear, say)
    try:
        yield controller
    finally:
        process.kill()
        process.communicate()
        if controller.lifeline >= 0:
            os.close(controller.lifeline)


@contextmanager
def controlled(directory: Path, *options: str) -> Iterator[Controller]:
    """Our helper under a controller that follows ZeroMQ's protocol, whatever it sends."""
    endpoint = f"ipc://{directory}/lies"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 1000)
        router.setsockopt(zmq.RCVTIMEO, 20000)
        router.bind(endpoint)
        identity = b""

        def hear() -> bytes:
            nonlocal identity
            identity, data = router.recv_multipart()
            return data

        def say(*parts: bytes) -> None:
            router.send_multipart([identity, *parts])

        try:
            with our_helper(endpoint, hear, say, *options) as controller:
                yield controller
        finally:
            os.unlink(directory / "lies")


class TestALyingController:
    """What our helper does about a controller that lies: it ends itself."""

    def ended(self, controller: Controller, what: str, status: int = 255) -> None:
        assert controller.exit_status() == status
        errors = controller.errors().splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("xen-save-helper: ")
        assert what in errors[0]

    @pytest.mark.parametrize(
        ("lie", "what"),
        [
            (b"garbage", "broke the protocol: message at offset 0x0"),
            (b"\xdd\xff\xff\xff\xff", "not msgpack"),
            (msgpack_codec.encode(1, "suspend", {}), "a message of the other end: suspend"),
            (
                msgpack_codec.encode(1, "reply", {"to": 1, "value": 0}),
                "wrong turn: reply while hello was said",
            ),
            (msgpack_codec.encode(1, "reply", {"to": 0, "value": 0}), "wrong turn: reply"),
            (msgpack_codec.encode(1, "abort", {"rc": -1, "reason": ""}), "wrong turn: abort"),
            (
                msgpack_codec.encode(1, "start", {**start_fields(), "proof": bytes(32)}),
                "wrong secret: start does not know the secret",
            ),
            (msgpack_codec.encode(1, "refused", {"reason": "no"}), "the controller refused: no"),
        ],
    )
    def test_instead_of_start(self, runtime_directory: Path, lie: bytes, what: str) -> None:
        with controlled(runtime_directory) as controller:
            controller.greet()
            controller.say(lie)
            self.ended(controller, what)

    def test_a_start_with_the_wrong_number(self, runtime_directory: Path) -> None:
        with controlled(runtime_directory) as controller:
            controller.greet()
            proof = controller.turns.start_proof()
            controller.say(msgpack_codec.encode(7, "start", {**start_fields(), "proof": proof}))
            self.ended(controller, "wrong sequence number: start has 7, want 1")

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ({"operation": "dance"}, "'dance' is not a valid Operation"),
            ({"stream_type": 9}, "9 is not a valid StreamType"),
            ({"engine": "steam"}, "engine 'steam'"),
            ({"missing_cpu_features": "perhaps"}, "'perhaps' is not a valid MissingCpuFeatures"),
        ],
    )
    def test_a_start_that_makes_no_sense(
        self, runtime_directory: Path, change: dict[str, Any], what: str
    ) -> None:
        with controlled(runtime_directory) as controller:
            controller.start(**change)
            self.ended(controller, what)

    @pytest.mark.parametrize(
        ("name", "to", "what"),
        [
            ("reply", 99, "reply to 99 while 6 waits"),
            ("async_callback_done", 5, "async_callback_done while complete waits for its reply"),
        ],
    )
    def test_a_wrong_answer(self, runtime_directory: Path, name: str, to: int, what: str) -> None:
        with controlled(runtime_directory) as controller:
            controller.start()
            while (envelope := controller.hear_message()).message.name != "complete":
                assert envelope.message.name in {"log", "statistics"}
            assert envelope.seq == 6
            controller.say(msgpack_codec.encode(2, name, {"to": to, "value": 0}))
            self.ended(controller, what)

    def test_many_parts(self, runtime_directory: Path) -> None:
        with controlled(runtime_directory) as controller:
            controller.greet()
            controller.say(b"one", b"two")
            self.ended(controller, "a message of many parts")

    def test_silence(self, runtime_directory: Path) -> None:
        with controlled(runtime_directory, "--start-limit", "0.5") as controller:
            controller.greet()
            self.ended(controller, "did not send start within 0.5 s")

    def test_an_answer_that_is_lost(self, runtime_directory: Path) -> None:
        with controlled(runtime_directory, "--answer-limit", "0.5") as controller:
            controller.start()
            self.ended(controller, "no answer to complete within 0.5 s")

    def test_death_before_start(self, runtime_directory: Path) -> None:
        with controlled(runtime_directory) as controller:
            controller.greet()
            os.close(controller.lifeline)
            controller.lifeline = -1
            self.ended(controller, "the controller died before it sent start", 254)

    def test_death_after_start(self, runtime_directory: Path) -> None:
        with controlled(runtime_directory) as controller:
            controller.start()
            while controller.hear_message().message.name != "complete":
                pass
            os.close(controller.lifeline)
            controller.lifeline = -1
            self.ended(controller, "the controller died", 254)


class TestAControllerThatBreaksZeroMQ:
    @contextmanager
    def raw(self, directory: Path, *options: str) -> Iterator[tuple[Controller, socket.socket]]:
        """Our helper and the controller's socket, after hello and a valid start."""
        listener = socket.socket(socket.AF_UNIX)
        path = f"{directory}/lies"
        listener.bind(path)
        listener.listen()
        listener.settimeout(20)
        peers: list[socket.socket] = []

        def hear() -> bytes:
            if not peers:
                peers.append(listener.accept()[0])
                peers[0].settimeout(20)
                zmtp.shake_hands(peers[0], b"ROUTER")
            while True:
                flags, body = zmtp.read_frame(peers[0])
                if not flags & 4:
                    return body

        with our_helper(
            f"ipc://{path}", hear, lambda data: peers[0].sendall(zmtp.message(data)), *options
        ) as controller:
            try:
                controller.start()
                while controller.hear_message().message.name != "complete":
                    pass
                yield controller, peers[0]
            finally:
                for peer in (*peers, listener):
                    peer.close()
                os.unlink(path)

    @pytest.mark.parametrize(
        "data",
        [
            b"\x02" + (1 << 30).to_bytes(8, "big") + b"x" * 1000,
            b"\x02" + (1 << 63).to_bytes(8, "big"),
            b"\xff" * 100,
        ],
    )
    def test_bytes_that_are_not_a_message(self, runtime_directory: Path, data: bytes) -> None:
        with self.raw(runtime_directory) as (controller, peer):
            peer.sendall(data)
            assert controller.exit_status() == 254
            assert "the controller hung up" in controller.errors()

    def test_half_a_message(self, runtime_directory: Path) -> None:
        with self.raw(runtime_directory) as (controller, peer):
            reply = msgpack_codec.encode(2, "reply", {"to": 4, "value": 0})
            peer.sendall(zmtp.message(reply)[:-1])
            peer.close()
            assert controller.exit_status() == 254
            assert "the controller hung up" in controller.errors()

    def test_silence(self, runtime_directory: Path) -> None:
        with self.raw(runtime_directory, "--answer-limit", "2") as (controller, _peer):
            assert controller.exit_status() == 255
            assert "no answer to complete within 2.0 s" in controller.errors()
