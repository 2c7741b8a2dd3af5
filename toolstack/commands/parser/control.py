"""The commands that see and steer running operations."""

from __future__ import annotations

import argparse

from xen_save_helper.toolstack.commands.common import count, positive, size
from xen_save_helper.toolstack.commands.parser.adding import Adder


def add_control_commands(command: Adder) -> None:
    status = command("status", "control:show_status", "show running saves, restores and migrations")
    status.add_argument("name", metavar="NAME", nargs="?", help="default: all")
    status.add_argument(
        "--openmetrics",
        action="store_true",
        help="print metrics for Prometheus, as node_exporter's textfile collector reads them",
    )
    status.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        nargs="?",
        const=1.0,
        help="again and again (default: each second) until nothing is going on",
    )
    for name, run, text in (
        ("cancel", "cancel", "end a running operation in order; the guest runs on"),
        ("set", "set_parameters", "change the limits of a running save or migration"),
        ("switch", "switch", "end the precopy of a running migration now"),
        ("pause-sending", "pause_sending", "let a stream rest; the guest runs on"),
        ("resume-sending", "resume_sending", "let it go on"),
    ):
        added = command(name, f"control:{run}", text)
        added.add_argument("name", metavar="NAME")
        if name == "set":
            _add_parameters(added)
        elif name == "switch":
            added.add_argument("to", choices=("postcopy", "stop-and-copy"))


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bandwidth", type=_bandwidth, metavar="SIZE", help="bytes a second at most; 0: no limit"
    )
    parser.add_argument("--max-downtime", type=count, metavar="MS", help="as of migrate")
    rounds = parser.add_mutually_exclusive_group()
    rounds.add_argument("--max-rounds", type=count, metavar="N", help="as of migrate")
    rounds.add_argument("--abort-after", type=positive, metavar="ROUNDS", help="as of migrate")
    parser.add_argument("--dirty-threshold", type=count, metavar="N", help="as of migrate")


def _bandwidth(text: str) -> int:
    return 0 if text == "0" else size(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"invalid interval {text!r}: want seconds, at most 3600")
    return seconds
