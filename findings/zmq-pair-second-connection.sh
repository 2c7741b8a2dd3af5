#!/usr/bin/env bash
# A ZeroMQ PAIR socket takes one peer at a time. A second one that connects meanwhile is neither refused
# nor served later: its connection is made, its handshake succeeds, and it stays open without a word, even
# after the first has gone, so it has no reason to connect anew. That peer may be the first one itself,
# whose connection broke where the listening side has not noticed: then they never meet again. A ROUTER
# with ROUTER_HANDOVER, beside a DEALER with a fixed identity, goes on with the new connection.
# Exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.1.0

"$work/venv/bin/python" - <<'PYTHON'
import sys

import zmq
from zmq.utils.monitor import recv_monitor_message

WAIT = 3000  # milliseconds
context = zmq.Context()


def hears(server, what):
    """Whether this comes within WAIT."""
    while server.poll(WAIT):
        if server.recv_multipart()[-1] == what:
            return True
    return False


def client(kind, port):
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    if kind == zmq.DEALER:
        sock.setsockopt(zmq.ROUTING_ID, b"the same")
    monitor = sock.get_monitor_socket()
    sock.connect(f"tcp://127.0.0.1:{port}")
    return sock, monitor


def told(monitor):
    names = set()
    while monitor.poll(300):
        names.add(zmq.Event(recv_monitor_message(monitor)["event"]).name)
    return names


def look(server_kind, client_kind):
    server = context.socket(server_kind)
    server.setsockopt(zmq.LINGER, 0)
    if server_kind == zmq.ROUTER:
        server.setsockopt(zmq.ROUTER_HANDOVER, 1)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    first, first_monitor = client(client_kind, port)
    first.send(b"first")
    assert hears(server, b"first")
    second, monitor = client(client_kind, port)
    second.send(b"second")
    while_both = hears(server, b"second")
    first.disable_monitor()
    first.close()
    first_monitor.close()
    second.send(b"still here")
    afterwards = hears(server, b"still here")
    events = told(monitor)
    second.disable_monitor()
    second.close()
    monitor.close()
    server.close()
    return while_both, afterwards, events


print(f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}")
pair = look(zmq.PAIR, zmq.PAIR)
router = look(zmq.ROUTER, zmq.DEALER)
for name, (while_both, afterwards, events) in {"PAIR": pair, "ROUTER": router}.items():
    print(f"{name}: the second is heard: {while_both}; after the first has gone: {afterwards}")
    print(f"    what the second's monitor told: {', '.join(sorted(events))}")
quiet = "HANDSHAKE_SUCCEEDED" in pair[2] and not {"DISCONNECTED", "CLOSED"} & pair[2]
sys.exit(not (pair[:2] == (False, False) and quiet and router[:2] == (True, True)))
PYTHON
