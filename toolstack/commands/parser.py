"""The command line of `xen-toolstack`: its commands, and the options of each.

Each command names the function that carries it out (`module:function`), which `main` imports.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack.commands.common import (
    count,
    guest_size,
    positive,
    size,
    trace_file,
)

EXIT_CODES_TEXT: Final = """\
exit codes: 0 success; 1 failed (after migrate and demo, the guest runs at the source); 2 usage;
3 failed after the postcopy transition: the guest is left suspended at the source;
4 undefined: the link was lost after GO, look at both ends; 5 the guest itself died"""

Adder = Callable[[str, str, str], argparse.ArgumentParser]
"""(name, `module:function` that runs it, what it does) -> its parser."""

FAULT_MODES: Final = ("save", "stop-and-copy", "live", "postcopy")

WORKLOADS: Final = ("idle", "sequential", "random", "write-heavy")


class _Version(argparse.Action):
    """Prints the version. argparse's own action needs it beforehand, which costs every command
    time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"{parser.prog} {version()}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line; argparse prints the usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.run` names the one that was given."""
    parser = _Parser(
        prog="xen-toolstack",
        description="Run, save, restore and migrate guests.",
        epilog=EXIT_CODES_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print it and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, json=False)
        for option in _SHARED[name]:
            _ADD_SHARED[option](added)
        return added

    _add_guest_commands(command)
    _add_file_commands(command)
    _add_migration_commands(command)
    _add_postcopy_commands(commands)
    _add_fault_commands(commands)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        metavar="NAME=SECONDS",
        action="append",
        default=[],
        help="how long a wait may last; NAME is helper_start, stopped, callback, suspend, abort, "
        "stream_stall, admission, handshake or ready",
    )


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="print the log to stderr")


def _add_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--events", metavar="FILE", type=trace_file, help="append the trace to FILE, as JSON lines"
    )


def _add_host(parser: argparse.ArgumentParser) -> None:
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


_ADD_SHARED: Final[Mapping[str, Callable[[argparse.ArgumentParser], None]]] = {
    "host": _add_host,
    "json": _add_json,
    "limit": _add_limit,
    "events": _add_events,
    "verbose": _add_verbose,
    "helper": _add_helper,
    "engine": _add_engine,
    "missing_cpu_features": _add_missing_cpu_features,
}

_QUICK: Final = ("host", "json")
"""The options of commands that are done at once."""
_WORK: Final = ("host", "json", "limit", "events", "verbose", "helper", "engine")
"""The options of commands that run a save helper."""

_SHARED: Final[Mapping[str, Sequence[str]]] = {
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
    # Its stdout is the link.
    "receive": ("host", "limit", "events", "verbose", "helper", "engine", "missing_cpu_features"),
    "recover": _QUICK,
    "demo": ("json", "limit", "events"),
}
"""The shared options of each command: those that have an effect on it."""


def _add_sparse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sparse",
        action="store_true",
        help="leave out pages of zeros; only our own engine restores such a stream",
    )


def _add_guest_commands(command: Adder) -> None:
    init = command("init", "guests:init", "make a directory a simulated host, with no guests")
    init.add_argument("directory", nargs="?", metavar="DIR", help="instead of --host")
    init.add_argument(
        "--memory", type=guest_size, metavar="SIZE", help="what its guests may have together"
    )
    init.add_argument(
        "--lacks",
        metavar="FEATURE,...",
        help="CPU features that it does not have, as `inspect` names them",
    )

    create = command("create", "guests:create", "start a new simulated guest")
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--memory", type=size, default=256 << 20, metavar="SIZE", help="default: 256M"
    )
    create.add_argument("--workload", choices=WORKLOADS, default="random")
    create.add_argument("--rate", type=count, metavar="N", help="pages written per second")
    create.add_argument("--type", choices=("pvh", "hvm"), default="pvh")
    create.add_argument(
        "--behaviour",
        metavar="HOW",
        help="what it does when asked to suspend: normal, refuse, late:SECONDS or die",
    )

    command("list", "guests:show_list", "show the host's guests")
    for name, text in (
        ("destroy", "end a guest"),
        ("pause", "stop a guest's vCPUs"),
        ("unpause", "let a paused guest run"),
    ):
        command(name, f"guests:{name}", text).add_argument("name", metavar="NAME")
    rename = command("rename", "guests:rename", "give a guest another name")
    rename.add_argument("name", metavar="NAME")
    rename.add_argument("new", metavar="NEW")


def _add_file_commands(command: Adder) -> None:
    save = command("save", "files:save", "save a guest into a file, and end it")
    save.add_argument("name", metavar="NAME")
    save.add_argument("file", metavar="FILE", help="`-` is stdout")
    save.add_argument("-c", "--checkpoint", action="store_true", help="let the guest run on")
    save.add_argument("-p", "--paused", action="store_true", help="leave the guest paused")
    _add_sparse(save)

    restore = command("restore", "files:restore", "restore a guest from a file")
    restore.add_argument("file", metavar="FILE", help="`-` is stdin")
    restore.add_argument("-p", "--paused", action="store_true", help="do not let it run yet")
    restore.add_argument("--name", metavar="NAME", help="instead of the one in the file")
    restore.add_argument(
        "-C",
        dest="config",
        metavar="CONFIG",
        help="a configuration to use instead of the one in the file: JSON, as `xl list -l` prints "
        "it",
    )

    inspect = command("inspect", "inspect:inspect", "show what is in a stream, record by record")
    inspect.add_argument("file", metavar="FILE", help="`-` is stdin")


def _add_migration_commands(command: Adder) -> None:
    migrate = command("migrate", "migrate:migrate", "move a running guest to another host")
    migrate.add_argument("name", metavar="NAME")
    migrate.add_argument(
        "--to",
        required=True,
        metavar="DIR|COMMAND",
        help="a simulated host's directory, or a command that talks to a receiver, such as "
        "`ssh there xl migrate-receive` or `ssh there xen-toolstack receive`",
    )
    migrate.add_argument(
        "--postcopy", action="store_true", help="let the guest run before all its memory is there"
    )
    rounds = migrate.add_mutually_exclusive_group()
    rounds.add_argument(
        "--max-rounds",
        type=count,
        default=5,
        metavar="N",
        help="at most N rounds of precopy (default: 5)",
    )
    rounds.add_argument(
        "--abort-after",
        type=positive,
        metavar="ROUNDS",
        help="give up after so many rounds without convergence; the guest runs on here",
    )
    migrate.add_argument(
        "--max-downtime",
        type=count,
        metavar="MS",
        help="end precopy once what is left takes no longer than this, at the measured rate; a "
        "postcopy sends as many of the guest's hottest pages ahead as that",
    )
    migrate.add_argument(
        "--dirty-threshold",
        type=count,
        default=50,
        metavar="N",
        help="end precopy at N dirty pages (default: 50)",
    )
    _add_bandwidth(migrate)
    _add_sparse(migrate)
    migrate.add_argument(
        "-p", "--paused", action="store_true", help="leave the guest paused at the destination"
    )
    migrate.add_argument(
        "-C",
        dest="config",
        metavar="FILE",
        help="a configuration to send instead of the guest's own: libxl's JSON",
    )
    migrate.add_argument(
        "--debug", action="store_true", help="send all memory again at the end, and compare it"
    )

    receive = command("receive", "receive:receive", "receive a guest on stdin and stdout")
    receive.add_argument("-p", "--paused", action="store_true", help="do not let it run yet")
    receive.add_argument(
        "--from", dest="source", metavar="TEXT", default="the sender", help="a name for the sender"
    )

    recover = command(
        "recover", "recover:recover", "finish what a dead controller left in the middle"
    )
    recover.add_argument("name", metavar="NAME")
    way = recover.add_mutually_exclusive_group()
    way.add_argument(
        "--resume", action="store_true", help="resume it: I have looked, and it runs nowhere else"
    )
    way.add_argument(
        "--destroy", action="store_true", help="destroy it: I have looked, and it runs elsewhere"
    )

    demo = command("demo", "demo:demo", "migrate a running guest between two hosts made for it")
    demo.add_argument("--mode", choices=("stop-and-copy", "precopy", "postcopy"), default="precopy")
    demo.add_argument("--memory", type=guest_size, default=256 << 20, metavar="SIZE")
    demo.add_argument("--workload", choices=WORKLOADS, default="random")
    _add_bandwidth(demo)


def _add_bandwidth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bandwidth", type=size, default=0, metavar="SIZE", help="bytes per second at most"
    )


def _group(commands: argparse._SubParsersAction[_Parser], name: str, text: str) -> Adder:
    """Add a command that has commands of its own, each with --json; returns what adds one."""
    group = commands.add_parser(name, help=text, description=text)
    those = group.add_subparsers(metavar="WHAT", required=True)

    def command(name: str, run: str, text: str) -> argparse.ArgumentParser:
        added = those.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        _add_json(added)
        return added

    return command


def _add_postcopy_commands(
    commands: argparse._SubParsersAction[_Parser],
) -> None:
    """Add the commands of `postcopy`; page servers and pagers are this machine's."""
    text = "see and steer what goes on after a postcopy under xl: page servers and pagers"
    command = _group(commands, "postcopy", text)
    command("list", "postcopy:show_list", "show all of them")
    status = command(
        "status", "postcopy:show_status", "show those of a guest; fails if its pages are lost"
    )
    status.add_argument("name", metavar="NAME")
    wait = command(
        "wait", "postcopy:wait", "wait until all pages are in place; fails if they are lost"
    )
    wait.add_argument("names", metavar="NAME", nargs="*", help="default: all guests")
    wait.add_argument("--timeout", type=positive, metavar="SECONDS", help="fail after so long")
    reconnect = command(
        "reconnect",
        "postcopy:reconnect",
        "let a pager reach its page server at another address, or a page server listen there, too",
    )
    reconnect.add_argument("name", metavar="NAME")
    reconnect.add_argument("address", metavar="ADDRESS[:PORT]")
    abandon = command(
        "abandon", "postcopy:abandon", "end one of them, or forget one that has ended"
    )
    abandon.add_argument("name", metavar="NAME")
    abandon.add_argument(
        "--lose-the-guest", action="store_true", help="even if pages of it are still missing"
    )


def _add_fault_commands(
    commands: argparse._SubParsersAction[_Parser],
) -> None:
    """Add the commands of `faults`; they make their own hosts, so there is no --host."""
    text = "provoke faults in a save or migration, and judge how it ends"
    command = _group(commands, "faults", text)
    command("list", "faults:show_points", "show every point, and what can be done there")

    run = command("run", "faults:run", "run a plan once on two simulated hosts, and judge it")
    run.add_argument(
        "plan",
        metavar="PLAN|@FILE",
        help="such as `postcopy_transition:before-answer=kill`; `faults list` explains plans",
    )
    _add_limit(run)
    _add_events(run)
    run.add_argument("--mode", choices=FAULT_MODES, default="live")
    run.add_argument(
        "--memory", type=guest_size, default=4 << 20, metavar="SIZE", help="default: 4M"
    )
    run.add_argument("--workload", choices=WORKLOADS, default="write-heavy")

    campaign = command(
        "campaign",
        "fault_campaign:campaign",
        "run every point with every action, or a sample, and write reports",
    )
    _add_limit(campaign)
    campaign.add_argument("-v", "--verbose", action="store_true", help="show all runs")
    campaign.add_argument(
        "--modes",
        metavar="MODE,...",
        help=f"some of {', '.join(FAULT_MODES)} (default: save,live,postcopy)",
    )
    campaign.add_argument(
        "--points", metavar="GLOB", help="only these points, e.g. 'suspend:*' or 'controller/*'"
    )
    part = campaign.add_mutually_exclusive_group()
    part.add_argument(
        "--short", action="store_true", help="a fixed part that touches each point and action"
    )
    part.add_argument("--random", type=positive, metavar="N", help="N random plans of two faults")
    campaign.add_argument("--seed", type=count, metavar="S", help="repeats the plans of --random")
    campaign.add_argument(
        "--jobs", type=positive, metavar="J", help="runs at once (default: one per processor)"
    )
    campaign.add_argument(
        "--out",
        metavar="DIR",
        default="fault-campaign",
        help="directory of the reports (default: fault-campaign)",
    )
    campaign.add_argument("--resume", action="store_true", help="continue the campaign in DIR")
    campaign.add_argument(
        "--again", action="store_true", help="with --resume: also repeat runs that did not hold"
    )
    campaign.add_argument(
        "--memory", type=guest_size, metavar="SIZE", help="memory of the guests (default: 4M)"
    )
    campaign.add_argument("--workload", choices=WORKLOADS)
