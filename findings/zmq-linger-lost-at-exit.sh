#!/usr/bin/env bash
# ZeroMQ: with LINGER -1, close and term return once all messages have been given to the kernel, not once
# the peer has them. Whether the peer gets them is then up to TCP: if the process ends while its own
# receive buffer holds bytes that nobody has read (here a message that it never asked for), Linux resets
# the connection, and what was still in the send buffer is thrown away. A last word to a slow peer that is
# alive and reads on is lost, without an error at either side; if nothing came in unread, it arrives.
# Exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.1.0

cat >"$work/sender.py" <<'PYTHON'
import sys

import zmq

context = zmq.Context()
sock = context.socket(zmq.PAIR)
sock.setsockopt(zmq.LINGER, -1)
sock.setsockopt(zmq.RCVHWM, 1)
sock.setsockopt(zmq.SNDBUF, 1 << 20)
sock.setsockopt(zmq.RCVBUF, 1 << 20)
print(sock.bind_to_random_port("tcp://127.0.0.1"), flush=True)
sock.recv()
sock.send(b"hello")
sys.stdin.readline()  # the peer is slow from here on
for _ in range(5):
    sock.send(b"x" * 65536)
sock.send(b"the last word")
sock.close()
context.term()
print("all was sent", flush=True)
PYTHON

cat >"$work/look.py" <<'PYTHON'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import zmq

RECEIVER = """
import sys, zmq
context = zmq.Context()
sock = context.socket(zmq.PAIR)
sock.setsockopt(zmq.LINGER, 0)
sock.setsockopt(zmq.RCVBUF, 65536)
sock.setsockopt(zmq.SNDHWM, 1)
sock.setsockopt(zmq.SNDBUF, 1 << 20)
sock.connect("tcp://127.0.0.1:" + sys.argv[1])
sock.send(b"hello")
sock.recv()
for _ in range(int(sys.argv[2])):
    sock.send(b"y" * 65536)
print("ready", flush=True)
got, last = 0, False
while sock.poll(3000):
    last = sock.recv() == b"the last word"
    got += 1
print(got, last, flush=True)
"""


def stands_still(pid):
    """Whether all its threads do."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


def look(unread):
    """How many of 6 messages a peer gets that stands still for a moment, and whether the last."""
    sender = subprocess.Popen(
        [sys.executable, sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    port = sender.stdout.readline().strip()
    receiver = subprocess.Popen(
        [sys.executable, "-c", RECEIVER, port, str(unread)], stdout=subprocess.PIPE, text=True
    )
    receiver.stdout.readline()
    os.kill(receiver.pid, signal.SIGSTOP)
    while not stands_still(receiver.pid):
        time.sleep(0.01)
    sender.stdin.write("\n")
    sender.stdin.flush()
    told = sender.stdout.readline().strip()
    sender.wait()
    os.kill(receiver.pid, signal.SIGCONT)
    got, last = receiver.communicate()[0].split()
    return told, int(got), last == "True"


print(f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}")
results = {unread: look(unread) for unread in (0, 8)}
for unread, (told, got, last) in results.items():
    print(f"{unread} messages unread here: {told!r}; the peer got {got} of 6, the last word: {last}")
sys.exit(not (results[0][2] and results[8][0] == "all was sent" and not results[8][2]))
PYTHON
"$work/venv/bin/python" "$work/look.py" "$work/sender.py"
