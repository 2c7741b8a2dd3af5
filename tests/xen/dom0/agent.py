"""The agent in dom0: installs our package, and does what the host asks over the share.

The share, as both ends see it (`tests.xen.machine` is the other one):

    rig/            the rig's own code; *.whl; the guest's ramdisk
    installed.tar   what pip has made of the wheel, at an earlier boot or for the next one
    heartbeat       written every second while dom0 runs
    kept.json       written once, when a machine that is to be kept has been prepared
    boot.json       written once, when dom0 is ready
    requests/N.json what to run, one at a time; N starts at 1
    results/N/      output (as it comes), figures.json, outcome.json (last), logs/, handed-over/
    given/          what an earlier scenario has handed over, if this one comes after it

Before each request, everything that the previous one has left behind is destroyed.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.xen.dom0 import clean_up, kernel_log
from tests.xen.dom0.lab import Lab, xen_version
from tests.xen.dom0.share import HOST, Heartbeat, write

INSTALL: Final = ("pip", "install", "--break-system-packages", "--no-index")
"""The command of helper/README.md, up to the wheel's name."""
_POLL_SECONDS: Final = 0.2
_INSTALL_SECONDS: Final = 420
_CLEAN_UP_SECONDS: Final = 60


def main() -> None:
    Heartbeat()
    started = time.monotonic()
    _install()
    seconds = time.monotonic() - started
    kernel = kernel_log.KernelLog()
    kernel.new_lines()
    ours = clean_up.processes()
    ready = {"xen": xen_version(), "install_seconds": round(seconds, 1)}
    write(HOST / "boot.json", ready)
    number = 1
    while True:
        path = HOST / "requests" / f"{number}.json"
        while not path.exists():
            time.sleep(_POLL_SECONDS)
        results = HOST / "results" / str(number)
        outcome = _serve(json.loads(path.read_text()), results, kernel)
        left = clean_up.clean_up(ours, _CLEAN_UP_SECONDS)
        # A crash here is not the fault of a scenario, but the machine must not run another one.
        crashed = kernel_log.faults(kernel.new_lines())
        outcome["left_over"] = left + [f"clearing up: {fault['line']}" for fault in crashed]
        write(results / "outcome.json", outcome)
        number += 1


def _install() -> None:
    """Install it as helper/README.md tells a user to: pip downloads nothing, and checks that
    Debian's libraries suffice. What pip made is kept on the share, for the next boot of the same
    image and wheel."""
    kept = HOST / "installed.tar"
    if kept.exists():
        _must(["tar", "-C", "/usr/local", "-xf", str(kept)])
        return
    (wheel,) = Path("/run/rig").glob("*.whl")
    _must([*INSTALL, "-q", "--root-user-action=ignore", str(wheel)])
    scratch = kept.with_suffix(".tmp")
    _must(["tar", "-C", "/usr/local", "-cf", str(scratch), "."])
    scratch.rename(kept)


def _must(command: list[str]) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=_INSTALL_SECONDS
    )
    if done.returncode:
        error = f"{shlex.join(command)}: {done.stdout}{done.stderr}"
        write(HOST / "boot.json", {"error": error})
        sys.exit(1)


def _serve(request: dict[str, Any], results: Path, kernel: kernel_log.KernelLog) -> dict[str, Any]:
    results.mkdir(parents=True)
    # Earlier lines do not belong to this request.
    kernel.new_lines()
    started = time.monotonic()
    command: Sequence[str]
    if "scenario" in request:
        module = "tests.xen.dom0.child"
        command = [sys.executable, "-u", "-m", module, request["scenario"], str(results)]
    elif request["script"].endswith(".py"):
        command = [sys.executable, "-u", request["script"]]
    else:
        command = ["bash", request["script"]]
    with open(results / "output", "wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/tmp",
        )
        status: int | None = None
        try:
            status = child.wait(request["limit"])
        except subprocess.TimeoutExpired:
            clean_up.describe(output)
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    seconds = time.monotonic() - started
    if status != 0 or "script" in request:
        Lab(results).collect_logs(with_hypervisor=status != 0)
    lines = kernel.new_lines()
    return {
        "outcome": "timeout" if status is None else "failed" if status else "passed",
        "status": status,
        "seconds": round(seconds, 1),
        "faults": kernel_log.faults(lines),
        "kernel": lines[-100:],
    }


if __name__ == "__main__":
    main()
