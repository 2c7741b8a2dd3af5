"""What whoever runs the drop-in may choose, and libxl has no argument for.

Each setting is an environment variable, or a line `NAME=VALUE` of a file for those who cannot
reach the environment (libvirt's daemon starts us). The environment comes before the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ipc_schema.waits import LONGEST_WAIT

PREFIX: Final = "XEN_SAVE_HELPER_"
CONFIG: Final = f"{PREFIX}CONFIG"
DEFAULT_CONFIG: Final = "/etc/xen/save-helper.conf"

ANSWER_LIMIT: Final = 600.0
"""Seconds that a callback may stay unanswered where nothing else is set."""


class SettingError(Exception):
    """A setting that cannot be; the text says which, where it stands, and what would be right."""


class Settings(NamedTuple):
    """`stream_stall` (else none) and `answer_limit` (else ANSWER_LIMIT) in seconds, 0 for no limit;
    `max_iterations` to `abort_after` are `PrecopyLimits`; all of these None where they are not set,
    and texts empty. `device_model`: see `helper.hypervisors.xen.restored_model`."""

    events: str = ""
    faults: str = ""
    dialect: str = ""
    hypervisor: str = "xen"
    stream_stall: float | None = None
    answer_limit: float | None = None
    max_iterations: int | None = None
    dirty_threshold: int | None = None
    max_downtime_ms: int | None = None
    abort_after: int | None = None
    device_model: str = ""


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings of `environ` and of the file that it names, else of the default file where
    there is one. Raises SettingError."""
    path = environ.get(CONFIG, "")
    given = _of_file(path or DEFAULT_CONFIG, must_exist=bool(path))
    for name in _KINDS:
        if environ.get(name):
            given[name] = ("environment", environ[name])
    values: dict[str, Any] = {}
    for name, (where, text) in given.items():
        try:
            values[name.removeprefix(PREFIX).lower()] = _KINDS[name](text)
        except ValueError as bad:
            raise SettingError(f"{where}: {name}={text!r}: want {bad}") from None
    if "max_iterations" in values and "abort_after" in values:
        raise SettingError(
            f"{PREFIX}MAX_ITERATIONS and {PREFIX}ABORT_AFTER exclude each other: after so many "
            "rounds the guest is stopped and copied, or the migration is given up"
        )
    return Settings(**values)


def _of_file(path: str, *, must_exist: bool) -> dict[str, tuple[str, str]]:
    """By name: where it stands, and its text."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        if must_exist:
            raise SettingError(f"{CONFIG}={path}: there is no such file") from None
        return {}
    except OSError as bad:
        raise SettingError(f"{path}: {bad.strerror}") from None
    given = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in text.partition("="))
        where = f"{path}, line {number}"
        if not equals:
            raise SettingError(f"{where}: {text!r}: want NAME=VALUE")
        if name not in _KINDS:
            raise SettingError(f"{where}: {name!r} is no setting; want {', '.join(_KINDS)}")
        if value:
            given[name] = (where, value)
    return given


def _number_from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**31:
            raise ValueError(f"a whole number from {least} on")
        return int(text)

    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT:
        raise ValueError(f"seconds, at most {LONGEST_WAIT:.0f}, 0 for no limit")
    return seconds


_KINDS: Final[Mapping[str, Callable[[str], object]]] = {
    f"{PREFIX}EVENTS": str,
    f"{PREFIX}FAULTS": str,
    f"{PREFIX}DIALECT": str,
    f"{PREFIX}HYPERVISOR": str,
    f"{PREFIX}STREAM_STALL": _seconds,
    f"{PREFIX}ANSWER_LIMIT": _seconds,
    f"{PREFIX}MAX_ITERATIONS": _number_from(1),
    f"{PREFIX}DIRTY_THRESHOLD": _number_from(0),
    f"{PREFIX}MAX_DOWNTIME_MS": _number_from(1),
    f"{PREFIX}ABORT_AFTER": _number_from(1),
    f"{PREFIX}DEVICE_MODEL": str,
}
