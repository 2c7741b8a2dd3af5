"""The command of the timeline, and the option of the commands that draw their own."""

from __future__ import annotations

import argparse

from xen_save_helper.toolstack.commands.common import positive
from xen_save_helper.toolstack.commands.parser.adding import Adder


def add_timeline_command(command: Adder) -> None:
    timeline = command(
        "timeline", "timeline:timeline", "draw the traces of both sides of a migration as a picture"
    )
    timeline.add_argument(
        "events",
        nargs="+",
        metavar="EVENTS",
        help="traces that --events or XEN_SAVE_HELPER_EVENTS wrote, of one machine or of two",
    )
    timeline.add_argument(
        "-o",
        "--output",
        metavar="FILE.html",
        help="the page; `-` is stdout (default: the first trace's name with .html, here)",
    )
    timeline.add_argument(
        "--trace-event",
        metavar="FILE.json",
        help="the same for ui.perfetto.dev and chrome://tracing; `-` is stdout",
    )
    timeline.add_argument(
        "--list", action="store_true", help="only show the operations that the traces hold"
    )
    timeline.add_argument(
        "--guest", metavar="NAME", help="the last operation on this guest (a name, or a domid)"
    )
    timeline.add_argument(
        "--operation", type=positive, metavar="N", help="the N-th operation, as --list counts them"
    )


def add_timeline_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeline", metavar="FILE.html", help="draw what happened as a page, however it ends"
    )
