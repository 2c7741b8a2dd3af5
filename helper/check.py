"""`xen-save-helper --check`: which settings are in force, what is wrong, and how to fix it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping

from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.command_line import xen_here
from xen_save_helper.helper.hypervisors.xen.restored_model import UNCHECKED
from xen_save_helper.helper.settings import (
    ANSWER_LIMIT,
    CONFIG,
    DEFAULT_CONFIG,
    PREFIX,
    Found,
    Settings,
    read_settings,
)
from xen_save_helper.helper.trace_file import open_for_trace
from xen_save_helper.ipc_schema.channel.helper_request import DEFAULT_ENGINE
from xen_save_helper.ipc_schema.channel.listen import Listen
from xen_save_helper.ipc_schema.channel.messages import Dialect, MissingCpuFeatures
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.version import version

EXIT_WRONG: Final = 1

_DEFAULTS: Final = {
    "stream_stall": "no limit",
    "answer_limit": f"{ANSWER_LIMIT:g}",
    "hypervisor": "xen",
    "engine": DEFAULT_ENGINE,
    "sparse": "0",
    "missing_cpu_features": MissingCpuFeatures.REFUSE,
}
_UNSET: Final = "not set"


def check(environ: Mapping[str, str]) -> int:
    """Check the settings of `environ` and of its file, and print them; 0 if nothing is wrong."""
    found = read_settings(environ)
    wrong = list(found.problems)
    print(f"{CONTEXT} {version()}")
    hypervisor = found.settings.hypervisor
    if hypervisor == "xen":
        try:
            print(f"{xen_here()}: {', '.join(_libraries())}")
        except OSError as bad:
            wrong.append(bad.strerror or str(bad))
    print(f"settings, from this environment and {environ.get(CONFIG) or DEFAULT_CONFIG}:")
    width = max(len(PREFIX + name) for name in Settings._fields)
    for name, value, where in _rows(found):
        print(f"  {name:{width}}  {value}  ({where})")
    wrong += _wrong_values(found)
    if not wrong:
        print("no problems found")
        return 0
    for problem in wrong:
        print(f"wrong: {problem}")
    return EXIT_WRONG


def _rows(found: Found) -> Iterator[tuple[str, str, str]]:
    for field in Settings._fields:
        name = PREFIX + field.upper()
        if name in found.given:
            yield name, found.given[name].text, found.given[name].where
        else:
            yield name, _DEFAULTS.get(field, _UNSET), "default"


def _wrong_values(found: Found) -> Iterator[str]:
    """Problems that show only when a setting is used."""
    settings = found.settings

    def line(field: str, problem: str) -> str:
        given = found.given[PREFIX + field.upper()]
        return f"{given.where}: {PREFIX}{field.upper()}={given.text}: {problem}"

    if settings.events and (problem := _events_problem(settings.events)):
        yield line("events", f"{problem}: saves go on without a trace")
    if settings.dialect and settings.dialect not in {dialect.value for dialect in Dialect}:
        known = ", ".join(dialect.value for dialect in Dialect)
        yield line("dialect", f"want one of {known}: every save fails")
    if settings.faults and (problem := _faults_problem(settings.faults)):
        yield line("faults", f"{problem}: every save fails")
    if settings.postcopy and (problem := _listen_problem(settings.postcopy)):
        yield line("postcopy", f"{problem}: migrations go on without postcopy")
    if settings.device_model not in ("", UNCHECKED) and not os.access(
        settings.device_model, os.X_OK
    ):
        yield line("device_model", f"want a program's path, or {UNCHECKED}: libxl cannot start it")
    directory = settings.hypervisor.removeprefix("sim:")
    if settings.hypervisor != "xen" and (
        directory == settings.hypervisor or not os.path.isdir(directory)
    ):
        yield line("hypervisor", "want xen, or sim: and a host's directory: every save fails")


def _events_problem(path: str) -> str:
    """Why the file cannot be appended to; empty if it can. If it did not exist, it is removed
    again."""
    was_there = os.path.lexists(path)
    try:
        os.close(open_for_trace(path))
    except OSError as bad:
        return bad.strerror or str(bad)
    if not was_there:
        os.unlink(path)
    return ""


def _listen_problem(listen: Listen) -> str:
    """Why nobody can listen there; empty if that is possible."""
    family = socket.AF_INET6 if ":" in listen.address else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(listen)
        except OSError as bad:
            return bad.strerror or str(bad)
    return ""


def _faults_problem(given: str) -> str:
    from xen_save_helper.helper.faults.plan_files import read_plan
    from xen_save_helper.helper.faults.seams import of_helper
    from xen_save_helper.ipc_schema.faults.plan import PlanError
    from xen_save_helper.ipc_schema.trace import Trace

    try:
        of_helper(read_plan(given).seeded(), Trace("check"), pipe=True)
    except PlanError as bad:
        return str(bad)
    return ""


def _libraries() -> list[str]:
    """The files of Xen's libraries that are loaded into this process."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps}
    return sorted(path for path in paths if os.path.basename(path).startswith("libxen"))
