"""A worker process of a campaign: it reads a line for each run from stdin and writes its verdict.

A request is `{"mode": ..., "plan": ..., "memory": ..., "workload": ..., "limits": {...}}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, Final

from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.toolstack.aio.scratch import ScratchDirectory
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.run import FaultRun, Verdict, run_fault
from xen_save_helper.toolstack.faults.environments import having
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.limits import Limits

PREFIX: Final = "xen-campaign-"


def longest_directory(runs: int) -> Path:
    """A path as long as that of any run of a worker that makes `runs`."""
    return Path(tempfile.gettempdir(), f"{PREFIX}{'x' * 8}", str(runs))


def main() -> None:
    # The campaign handles what is typed at the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ScratchDirectory(PREFIX, clear=end_all_in) as scratch:
        for number, line in enumerate(sys.stdin):
            directory = scratch.path / str(number)
            directory.mkdir()
            try:
                _tell(verdict_on(json.loads(line), directory))
            except BrokenPipeError:
                return  # the campaign was killed
            shutil.rmtree(directory)


def _tell(verdict: Verdict) -> None:
    left = f"{verdict}\n".encode()
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]


def verdict_on(asked: dict[str, Any], directory: Path) -> Verdict:
    """The verdict on a run; if the run could not be made, that is the problem."""
    try:
        plan, mode = parse(asked["plan"]), Mode(asked["mode"])
        run = FaultRun(plan, mode, asked["memory"], asked["workload"], directory)
        return run_fault(run, limits=Limits(**asked["limits"]))
    except Exception as error:
        problem = f"the run itself failed: {error!r}"
        return unjudged(asked["mode"], asked["plan"], problem, traceback.format_exc())


def unjudged(mode: str, plan: str, problem: str, seen: str = "") -> Verdict:
    """The verdict on a run that cannot be judged."""
    return Verdict(
        plan=plan,
        mode=mode,
        seed=parse(plan).seed or 0,
        fired=(),
        holds=False,
        problems=(problem,),
        expected="a run that can be judged",
        seen={"instead": seen} if seen else {},
        seconds=0.0,
        events=(),
    )


def end_all_in(scratch: Path) -> None:
    """End what the runs of a dead worker have left: guests and stopped processes."""
    for directory in scratch.iterdir():
        for side in Side:
            with contextlib.suppress(NotADirectoryError, FileNotFoundError):
                host = SimulatedHost(directory / side.value)
                for row in host.domains():
                    host.destroy(row.domid)
    for pid in having(f"TMPDIR={scratch}/"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
