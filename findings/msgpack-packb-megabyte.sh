#!/usr/bin/env bash
# msgpack.packb(1) makes one byte, but allocates and frees a whole megabyte for it, at each call: packb
# makes a Packer, and a Packer allocates its buffer at once, however little will be packed. msgpack 1.1
# allocates a quarter of that. A Packer that is kept allocates it once; since 1.1 it can be told to take
# less (buf_size), which packb passes on.
# Exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

look() {
    "$1" - "$2" <<'PYTHON'
import sys
import tracemalloc

import msgpack

wanted = int(sys.argv[1])


def taken(call):
    """The most bytes allocated beyond those held before."""
    call()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most - before


packer = msgpack.Packer()
once, kept = taken(lambda: msgpack.packb(1)), taken(lambda: packer.pack(1))
print(f"msgpack {'.'.join(map(str, msgpack.version))}, {msgpack.Packer.__module__}")
print(f"    packb(1):             {once} bytes are taken for {len(msgpack.packb(1))}")
print(f"    a kept Packer's pack: {kept}")
still = wanted <= once < wanted + 4096 and kept < 4096
if msgpack.version >= (1, 1):
    small = taken(lambda: msgpack.packb(1, buf_size=64))
    print(f"    packb(1, buf_size=64): {small}")
    still = still and small < 4096
sys.exit(not still)
PYTHON
}

for version in 1.0.5:1048576 1.1.1:262144; do
    venv=$work/${version%:*}
    python3.11 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "msgpack==${version%:*}"
    look "$venv/bin/python" "${version#*:}"
done
