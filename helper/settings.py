"""Settings for people who run the drop-in; libxl passes no arguments for them.

Each setting is an environment variable, or a line `NAME=VALUE` of a file for those who cannot set
the environment (libvirt's daemon starts us). The environment takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xen_save_helper.ipc_schema import variables
from xen_save_helper.ipc_schema.board import VARIABLE as BOARD
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.listen import Listen, parse_listen
from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures
from xen_save_helper.ipc_schema.channel.waits import LONGEST_WAIT
from xen_save_helper.ipc_schema.control_directory import DEFAULT_DIRECTORY
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

PREFIX: Final = "XEN_SAVE_HELPER_"
CONFIG: Final = f"{PREFIX}CONFIG"
DEFAULT_CONFIG: Final = "/etc/xen/save-helper.conf"
ENVIRONMENT: Final = "environment"
"""The source of a setting that is an environment variable."""

_FAMILY: Final = "XEN_SAVE"
"""The beginning of variables that are meant for us, even if misspelt."""

HAND_OVER: Final = f"{PREFIX}HAND_OVER"
"""The socket of a controller of ours, for the helper of the `xl` that it has started."""

OUTLIVE: Final = f"{PREFIX}OUTLIVE"
"""For the process that libxl's helper has started to do its work (`postcopy_link.outlive`): the
descriptor on which it says that the domain is restored."""

_OTHERS: Final = (CONFIG, HAND_OVER, OUTLIVE, BOARD, f"{PREFIX}QEMU")
"""Variables that are not settings: the settings file, one of `helper.qemu_wrapper`, and those of
our own processes."""

ANSWER_LIMIT: Final = 600.0
"""Seconds that a callback may stay unanswered by default."""


class Settings(NamedTuple):
    """`stream_stall` (by default no limit) and `answer_limit` (by default ANSWER_LIMIT) are in
    seconds, 0 for no limit; `max_iterations` to `abort_after` are `PrecopyLimits`. All of these are
    None if not set, and texts are empty. For `device_model` see
    `helper.hypervisors.xen.restored_model`, for `missing_cpu_features` `helper.cpu_check`."""

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
    engine: Engine | None = None
    sparse: bool = False
    postcopy: Listen | None = None
    control: str = DEFAULT_DIRECTORY
    missing_cpu_features: MissingCpuFeatures = MissingCpuFeatures.REFUSE


class Given(NamedTuple):
    """The text of a setting, and where it was found."""

    where: str
    text: str


class Found(NamedTuple):
    """`given` has, by name, the settings that are set and valid; `problems` are lines for people
    about the others."""

    settings: Settings
    given: Mapping[str, Given]
    problems: tuple[str, ...]


def read_settings(environ: Mapping[str, str]) -> Found:
    """Read the settings of `environ` and of the file that it names, or of the default file if there
    is one.

    Wrong settings are ignored and reported. They must not make a save fail: when a host shuts down,
    its guests' state would be lost.
    """
    problems: list[str] = []
    path = environ.get(CONFIG, "")
    given = _of_file(path or DEFAULT_CONFIG, problems, must_exist=bool(path))
    given |= _of_environment(environ, problems)
    values: dict[str, Any] = {}
    for name, (where, text) in list(given.items()):
        try:
            values[name] = _KINDS[name](text)
        except ValueError as bad:
            problems.append(f"{where}: {name}={text!r}: want {bad}; ignored")
            del given[name]
    _choose_one(given, values, problems)
    fields = {name.removeprefix(PREFIX).lower(): value for name, value in values.items()}
    return Found(Settings(**fields), given, tuple(problems))


def control_directory(environ: Mapping[str, str]) -> Path:
    """The directory of control sockets on a Xen host."""
    # Imported late: it would slow down every helper's start.
    from pathlib import Path

    return Path(read_settings(environ).settings.control)


def _of_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Given]:
    given = {}
    for name, text in environ.items():
        if name in _KINDS and text:
            given[name] = Given(ENVIRONMENT, text)
        elif name.upper().startswith(_FAMILY) and text and name not in (*_KINDS, *_OTHERS):
            problems.append(_unknown(ENVIRONMENT, name))
    return given


def _of_file(path: str, problems: list[str], *, must_exist: bool) -> dict[str, Given]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        if must_exist:
            problems.append(f"{CONFIG}={path}: no such file")
        return {}
    except OSError as bad:
        problems.append(f"{path}: {bad.strerror}: all of it is ignored")
        return {}
    given = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in text.partition("="))
        where = f"{path}, line {number}"
        if not equals:
            problems.append(f"{where}: {text!r}: want NAME=VALUE; ignored")
        elif name not in _KINDS:
            problems.append(_unknown(where, name))
        elif value:
            given[name] = Given(where, value)
    return given


def _unknown(where: str, name: str) -> str:
    # Imported late: it would slow down every helper's start.
    from difflib import get_close_matches

    upper = name.upper()
    ends = {known.removeprefix(PREFIX): known for known in (*_KINDS, CONFIG)}
    if upper.startswith(PREFIX) or upper in ends:
        near = get_close_matches(upper.removeprefix(PREFIX), ends, n=1)
    else:
        near = [known.removeprefix(PREFIX) for known in get_close_matches(upper, ends.values(), 1)]
    near = near or [known for known in ends if upper.removeprefix(PREFIX) in known]
    hint = f"did you mean {ends[near[0]]}?" if near else f"there are {', '.join(_KINDS)}"
    return f"{where}: unknown setting {name!r}, ignored; {hint}"


def _choose_one(given: dict[str, Given], values: dict[str, Any], problems: list[str]) -> None:
    """Precopy can end in one way only: the environment's, or else the one that spares the guest."""
    stop, abort = f"{PREFIX}MAX_ITERATIONS", f"{PREFIX}ABORT_AFTER"
    if stop not in values or abort not in values:
        return
    nearer = given[stop].where == ENVIRONMENT != given[abort].where
    kept, dropped = (stop, abort) if nearer else (abort, stop)
    problems.append(
        f"{given[dropped].where}: {dropped} is ignored in favour of {kept} ({given[kept].where}): "
        "after so many rounds the guest is either stopped or the migration given up"
    )
    del given[dropped], values[dropped]


def _number_from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) < 2**31:
            raise ValueError(f"a whole number from {least} on")
        return int(text)

    return number


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("1, or 0")
    return text == "1"


def _engine(text: str) -> Engine:
    try:
        return Engine(text)
    except ValueError:
        raise ValueError(" or ".join(Engine)) from None


def _missing_cpu_features(text: str) -> MissingCpuFeatures:
    try:
        return MissingCpuFeatures(text)
    except ValueError:
        raise ValueError(" or ".join(MissingCpuFeatures)) from None


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("a directory's absolute path")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT:
        raise ValueError(f"seconds, at most {LONGEST_WAIT:.0f}, 0 for no limit")
    return seconds


_KINDS: Final[Mapping[str, Callable[[str], object]]] = {
    variables.EVENTS: str,
    variables.FAULTS: str,
    f"{PREFIX}DIALECT": str,
    f"{PREFIX}HYPERVISOR": str,
    f"{PREFIX}STREAM_STALL": _seconds,
    f"{PREFIX}ANSWER_LIMIT": _seconds,
    f"{PREFIX}MAX_ITERATIONS": _number_from(1),
    f"{PREFIX}DIRTY_THRESHOLD": _number_from(0),
    f"{PREFIX}MAX_DOWNTIME_MS": _number_from(1),
    f"{PREFIX}ABORT_AFTER": _number_from(1),
    f"{PREFIX}DEVICE_MODEL": str,
    f"{PREFIX}ENGINE": _engine,
    f"{PREFIX}SPARSE": _flag,
    f"{PREFIX}POSTCOPY": parse_listen,
    f"{PREFIX}CONTROL": _absolute,
    f"{PREFIX}MISSING_CPU_FEATURES": _missing_cpu_features,
}
