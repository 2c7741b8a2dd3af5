"""A worker process of a campaign: it reads a line for each run from stdin and writes its verdict.

A request is `{"mode": ..., "plan": ..., "memory": ..., "workload": ..., "limits": {...}}`. The end
of stdin ends the process and the run that is under way: a campaign that is killed leaves nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

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


class _Abandoned(BaseException):
    """Nobody waits for the run any more. Not an Exception: `verdict_on` would make it a verdict."""


def main() -> None:
    # The campaign handles what is typed at the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _abandon)
    with (
        contextlib.suppress(_Abandoned, BrokenPipeError),
        ScratchDirectory(PREFIX, clear=end_all_in) as scratch,
    ):
        try:
            _serve(scratch.path)
        finally:
            # A run that was interrupted may have been about to start, or to end, something.
            end_all_in(scratch.path)


def _serve(scratch: Path) -> None:
    """Make what is asked for. Raises _Abandoned at the end of stdin, BrokenPipeError if nobody
    hears a verdict."""
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    for number in itertools.count():
        asked = json.loads(requests.get())
        directory = scratch / str(number)
        directory.mkdir()
        _tell(verdict_on(asked, directory))
        shutil.rmtree(directory)


def _listen(requests: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGTERM)


def _abandon(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Abandoned


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
