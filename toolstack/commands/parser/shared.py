"""The options that several commands have, and which commands those are."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from xen_save_helper.toolstack.commands.common import size, trace_file

WORKLOADS: Final = ("idle", "sequential", "random", "write-heavy")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        metavar="NAME=SECONDS",
        action="append",
        default=[],
        help="how long a wait may last; NAME is helper_start, stopped, callback, suspend, abort, "
        "stream_stall, admission, handshake or ready",
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="print the log to stderr")


def add_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--events", metavar="FILE", type=trace_file, help="append the trace to FILE, as JSON lines"
    )


def add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        metavar="DIR|xen",
        default=os.environ.get("XEN_TOOLSTACK_HOST"),
        help="a simulated host's directory, or this machine's Xen (default: $XEN_TOOLSTACK_HOST, "
        "else the Xen that this runs on)",
    )


def _add_helper(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--helper",
        metavar="libxl|PATH",
        help="the save helper that does the work: libxl's own, or any program that speaks libxl's "
        "protocol (default: ours)",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=("own", "libxenguest"),
        help="what reads or writes a real guest's memory: our own engine (the default), or Xen's "
        "libxenguest, which is always used for PV guests",
    )


def _add_missing_cpu_features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--missing-cpu-features",
        choices=("refuse", "ignore"),
        default="refuse",
        help="what to do with a guest that was offered CPU features which the host lacks: refuse "
        "it before its first page (the default), or restore it all the same",
    )


ADD_SHARED: Final[Mapping[str, Callable[[argparse.ArgumentParser], None]]] = {
    "host": add_host,
    "json": add_json,
    "limit": add_limit,
    "events": add_events,
    "verbose": add_verbose,
    "helper": _add_helper,
    "engine": _add_engine,
    "missing_cpu_features": _add_missing_cpu_features,
}

_QUICK: Final = ("host", "json")
"""The options of commands that are done at once."""
_WORK: Final = ("host", "json", "limit", "events", "verbose", "helper", "engine")
"""The options of commands that run a save helper."""

SHARED: Final[Mapping[str, Sequence[str]]] = {
    "init": _QUICK,
    "create": _QUICK,
    "list": _QUICK,
    "destroy": _QUICK,
    "pause": _QUICK,
    "unpause": _QUICK,
    "rename": _QUICK,
    "save": _WORK,
    "restore": (*_WORK, "missing_cpu_features"),
    "inspect": ("json",),
    "migrate": (*_WORK, "missing_cpu_features"),
    "evacuate": (*_WORK, "missing_cpu_features"),
    # Its stdout is the link.
    "receive": ("host", "limit", "events", "verbose", "helper", "engine", "missing_cpu_features"),
    "recover": _QUICK,
    "timeline": ("json",),
    "status": _QUICK,
    "cancel": _QUICK,
    "set": _QUICK,
    "switch": _QUICK,
    "pause-sending": _QUICK,
    "resume-sending": _QUICK,
    "demo": ("json", "limit", "events"),
    "completion": (),
}
"""The shared options of each command: those that have an effect on it."""


def add_sparse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="leave out pages of zeros; only our own engine restores such a stream",
    )


def add_bandwidth(parser: argparse.ArgumentParser, text: str = "bytes per second at most") -> None:
    parser.add_argument("--bandwidth", type=size, default=0, metavar="SIZE", help=text)
