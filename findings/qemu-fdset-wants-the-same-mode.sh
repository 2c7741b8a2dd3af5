#!/usr/bin/env bash
# A descriptor that is open for reading and writing should do for writing. In one of QEMU's descriptor
# sets (add-fd, then a file called /dev/fdset/N) it does not: QEMU wants to write, looks for a descriptor
# with exactly that mode, and finds none. QEMU 7.2 then says "Permission denied", 11.1 that no flags match.
# A descriptor that is reopened for writing only (/proc/self/fd/N) is accepted. And not every command knows
# these names: pmemsave, which takes a file name too, looks for a directory /dev/fdset.
# Needs root and mmdebstrap; exits with 0 if it is still so.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# SUITE VERSION: unpack Debian's QEMU into its own directory.
unpack() {
    mmdebstrap --quiet --variant=extract --aptopt='Acquire::Check-Valid-Until "false"' \
        --include="base-files,coreutils,dash,qemu-system-x86=$2" "$1" "$work/$1"
}

unpack bookworm '1:7.2+dfsg-7+deb12u18+b3'
unpack sid '1:11.1.3+ds-1'
for suite in bookworm sid; do
    chroot "$work/$suite" qemu-system-x86_64 --version | head -n 1
    python3 - "$work/$suite" <<'PYTHON'
import json
import os
import socket
import subprocess
import sys

root = sys.argv[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{root}/qmp")
listener.listen()
qemu = subprocess.Popen(
    ["chroot", root, "qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", "16", "-nodefaults",
     "-display", "none", "-S", "-qmp", "unix:/qmp"]
)
listener.settimeout(60)
monitor, _ = listener.accept()
lines = monitor.makefile("r")


def execute(command, descriptor=None, **arguments):
    text = json.dumps({"execute": command, "arguments": arguments}).encode()
    socket.send_fds(monitor, [text], [] if descriptor is None else [descriptor])
    while True:
        answer = json.loads(lines.readline())
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            return answer["error"]["desc"]


lines.readline()
execute("qmp_capabilities")
both = os.memfd_create("both")
only = os.open(f"/proc/self/fd/{both}", os.O_WRONLY)
said = {}
for mode, descriptor in (("O_RDWR", both), ("O_WRONLY", only)):
    name = f"/dev/fdset/{execute('add-fd', descriptor)['fdset-id']}"
    for command, arguments in (
        ("dump-guest-memory", {"paging": False, "protocol": f"file:{name}"}),
        ("pmemsave", {"val": 0, "size": 4096, "filename": name}),
    ):
        said[mode, command] = execute(command, **arguments)
        print(f"    {mode:8} {command:17} {said[mode, command]}, {os.fstat(both).st_size} bytes")
        os.ftruncate(both, 0)
execute("quit")
qemu.wait(30)
words = ("Permission denied", "Failed to find file descriptor with matching flags")
refused = any(text in str(said["O_RDWR", "dump-guest-memory"]) for text in words)
taken = said["O_WRONLY", "dump-guest-memory"] == {}
unknown = all("No such file" in str(said[mode, "pmemsave"]) for mode in ("O_RDWR", "O_WRONLY"))
sys.exit(not (refused and taken and unknown))
PYTHON
done
