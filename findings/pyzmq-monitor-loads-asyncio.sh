#!/usr/bin/env bash
# zmq.utils.monitor looks like a few lines that parse a monitor's two frames. For that it loads asyncio,
# with ssl, logging and concurrent.futures, which costs a process that uses ZeroMQ from plain threads more
# than the rest of pyzmq. pyzmq 24 and 27 do the same. A socket's monitor itself needs none of that:
# recv_multipart returns its frames.
# Exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

look() {
    "$1" - <<'PYTHON'
import sys
import time

import zmq

without = {"asyncio", "ssl"} & set(sys.modules), len(sys.modules)
began = time.process_time()
import zmq.utils.monitor

spent = time.process_time() - began
with_it = {"asyncio", "ssl"} & set(sys.modules), len(sys.modules)
print(f"pyzmq {zmq.__version__}, Python {sys.version.split()[0]}")
print(f"    import zmq:               {without[1]} modules, asyncio and ssl loaded: {len(without[0]) == 2}")
print(f"    import zmq.utils.monitor: {with_it[1]} modules, asyncio and ssl loaded: {len(with_it[0]) == 2}, "
      f"{spent * 1000:.0f} ms of processor")
sys.exit(without[0] != set() or len(with_it[0]) != 2)
PYTHON
}

for version in 24.0.1 27.1.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --disable-pip-version-check "pyzmq==$version"
    look "$work/$version/bin/python"
done
