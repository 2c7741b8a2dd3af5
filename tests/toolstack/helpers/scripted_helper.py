"""A save helper, honest or lying, that does what its command line says.

    python -m tests.toolstack.helpers.scripted_helper STEP... ARGUMENTS OF THE CONTROLLER

The steps are the functions of `Script`. The honest ones use the real helper end of the channel, the
lies its socket.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import sys
from typing import Any

from tests.toolstack.helpers import zmtp
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import ChannelError
from xen_save_helper.helper.channels.zmq_channel import ZmqChannel
from xen_save_helper.ipc_schema.channel import msgpack_codec
from xen_save_helper.ipc_schema.channel.authentication import SECRET_SIZE

STATISTICS = {"rounds": 1, "pages": 2, "bytes": 3, "postcopy_pages": 4, "postcopy_faults": 5}
POLICY = {"iteration": 1, "total_written": 2, "dirty_count": 3}


class Script:
    """The steps. `abort` is entered from `start` on, with the save's signals."""

    def __init__(self, endpoint: str, secret_fd: int) -> None:
        self.endpoint = endpoint
        self.secret_fd = secret_fd
        self.secret = os.read(secret_fd, SECRET_SIZE)
        self._channel: ZmqChannel | None = None
        self.abort = Abort(lifeline=secret_fd)

    @property
    def channel(self) -> ZmqChannel:
        if self._channel is None:
            self._channel = ZmqChannel(self.endpoint, self.secret)
        return self._channel

    def raw(self, *parts: bytes) -> None:
        self.channel._socket.send_multipart(parts)

    def say(self, seq: int, name: str, **fields: Any) -> None:
        self.raw(msgpack_codec.encode(seq, name, fields))

    # What a helper does

    def hello(self) -> None:
        self.channel.hello()

    def start(self) -> None:
        self.hello()
        self.channel.wait_for_start(self.secret_fd, 10)
        self.channel.attend(self.abort)
        self.abort.__enter__()

    def suspend(self) -> None:
        self.channel.call("suspend")

    def policy(self) -> None:
        print(f"policy {self.channel.call('precopy_policy', **POLICY)}", file=sys.stderr)

    def logdirty_off(self) -> None:
        self.channel.call("switch_qemu_logdirty", domid=1, enable=0)

    def log(self) -> None:
        self.channel.tell("log", level=5, errnoval=0, context="xc", formatted="a line")

    def statistics(self) -> None:
        self.channel.tell("statistics", **STATISTICS)

    def restore_results(self) -> None:
        self.channel.tell("restore_results", store_gfn=11, console_gfn=12)

    def complete(self) -> None:
        self.channel.call("complete", retval=0, errnoval=0)

    def complete_third(self) -> None:
        """Complete as the third message, and do not wait for the answer."""
        self.say(3, "complete", retval=0, errnoval=0)

    def fail(self) -> None:
        self.channel.call("complete", retval=-1, errnoval=errno.EIO)

    def until_abort(self) -> None:
        """Wait for the abort, then do what an error path does."""
        while not self.abort.requested:
            signal.sigtimedwait([], 0.01)
        print(f"aborted: {self.abort.reason}", file=sys.stderr)

    def policies(self) -> None:
        while not self.abort.requested:
            self.channel.call("precopy_policy", **POLICY)

    def endless_round(self) -> None:
        """Ask for ever within the first round, and send nothing."""
        while not self.abort.requested:
            self.channel.call("precopy_policy", iteration=0, total_written=0, dirty_count=-1)

    def exit_0(self) -> None:
        self.channel.close()
        os._exit(0)

    def exit_3(self) -> None:
        print("something went wrong", file=sys.stderr, flush=True)
        os._exit(3)

    def hang(self) -> None:
        """Do nothing, until SIGKILL."""
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
        while True:
            signal.sigtimedwait([], 1)

    def be_stopped(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def be_killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stderr_flood(self) -> None:
        sys.stderr.buffer.write(b"x" * 1_000_000 + b"\n\xe9 last line\n")

    # What a liar does

    def wrong_secret(self) -> None:
        self.secret = bytes(SECRET_SIZE)
        self.hello()
        self.refusal()

    def wrong_version(self) -> None:
        self.say(1, "hello", **{**self.channel._turns.hello(os.getpid()), "version": 99})
        self.refusal()

    def refusal(self) -> None:
        try:
            self.channel.wait_for_start(self.secret_fd, 10)
        except ChannelError as error:
            print(error.strerror, file=sys.stderr, flush=True)
        os._exit(255)

    def callback_first(self) -> None:
        self.say(1, "suspend")
        self.refusal()

    def second_hello(self) -> None:
        self.say(2, "hello", **self.channel._turns.hello(os.getpid()))

    def skipped_number(self) -> None:
        self.say(9, "suspend")

    def repeated_number(self) -> None:
        self.say(1, "suspend")

    def impatient(self) -> None:
        self.say(2, "suspend")
        self.say(3, "log", level=1, errnoval=0, context="", formatted="")

    def answering(self) -> None:
        self.say(2, "reply", to=1, value=0)

    def restoring(self) -> None:
        self.say(2, "restore_results", store_gfn=1, console_gfn=1)

    def not_provided(self) -> None:
        self.say(2, "postcopy_transition")

    def garbage(self) -> None:
        self.raw(b"\xdd\xff\xff\xff\xff garbage")

    def many_parts(self) -> None:
        self.raw(b"one", b"two")

    def too_long(self) -> None:
        self.raw(b"x" * 65_536)

    def after_complete(self) -> None:
        self.complete()
        seq = self.channel._turns.next_seq
        self.say(seq, "log", level=5, errnoval=0, context="", formatted="after the end")

    def raw_peer(self) -> socket.socket:
        """A connection that has shaken hands by ZeroMQ's own protocol, and sent a valid hello."""
        peer = zmtp.connect(self.endpoint)
        peer.sendall(
            zmtp.message(msgpack_codec.encode(1, "hello", self.channel._turns.hello(os.getpid())))
        )
        zmtp.skip_messages(peer, 1)
        return peer

    def huge_length(self) -> None:
        peer = self.raw_peer()
        peer.sendall(b"\x02" + (1 << 30).to_bytes(8, "big") + b"x" * 1000)
        self.hang()

    def half_a_message(self) -> None:
        peer = self.raw_peer()
        peer.sendall(zmtp.message(msgpack_codec.encode(2, "suspend", {}))[:-3])
        peer.close()
        self.hang()

    def half_a_greeting(self) -> None:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(self.endpoint.removeprefix("ipc://"))
        peer.sendall(zmtp.GREETING[:10])
        self.hang()

    def half_a_message_and_silence(self) -> None:
        peer = self.raw_peer()
        peer.sendall(zmtp.message(msgpack_codec.encode(2, "suspend", {}))[:-3])
        self.hang()


def main() -> None:
    arguments = sys.argv[1:]
    steps = list(itertools.takewhile(lambda word: not word.startswith("--"), arguments))
    options = arguments[len(steps) :]
    given = dict(zip(options[::2], options[1::2], strict=True))
    script = Script(given["--connect"], int(given["--secret-fd"]))
    for step in steps:
        try:
            getattr(script, step)()
        except ChannelError as error:
            print(f"{step}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(254 if error.errno == errno.EPIPE else 255)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
