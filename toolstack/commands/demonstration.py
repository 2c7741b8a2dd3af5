"""demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from xen_save_helper.toolstack.aio.scratch import ScratchDirectory
from xen_save_helper.toolstack.commands.demo import DemoResult
from xen_save_helper.toolstack.commands.demo import demo as run_demo
from xen_save_helper.toolstack.commands.migrate import report
from xen_save_helper.toolstack.commands.running import limits_of, open_trace, progress_for, run

_VERIFIED: Final = "the guest compared every page at the destination, and runs on"


def demo(arguments: argparse.Namespace) -> int:
    """The events are read to say what happened, so without --events they go to a file that ends
    with the demo."""
    with ScratchDirectory("xen-toolstack-events-") as scratch:
        if arguments.events is None:
            arguments.events = str(scratch.path / "events")
        given = [f"--limit={setting}" for setting in arguments.limit]
        given.append(f"--events={Path(arguments.events).absolute()}")
        with progress_for(arguments, "demo") as progress:
            result = run(
                run_demo(
                    arguments.mode,
                    memory=arguments.memory,
                    workload=arguments.workload,
                    bandwidth=arguments.bandwidth,
                    limits=limits_of(arguments),
                    trace=open_trace(arguments, "controller"),
                    events=Path(arguments.events),
                    receiver_arguments=given,
                    progress=progress,
                )
            )
    return _report(arguments, result)


def _report(arguments: argparse.Namespace, result: DemoResult) -> int:
    migration = result.migration
    rows = [("verified", _VERIFIED)] if result.verified else []
    if result.first_step_lead_seconds is not None:
        rows.append(("first step", _lead(result.first_step_lead_seconds)))
    extra = {
        "verified": result.verified,
        "first_step_lead_seconds": result.first_step_lead_seconds,
    }
    return report(arguments, migration, rows, extra)


def _lead(seconds: float) -> str:
    if seconds > 0:
        return f"at the destination {seconds * 1000:.1f} ms before the last page arrived"
    return "only after the last page had arrived"
