"""The command line of `xen-save-helper`, and its help for people who run it by hand."""

from __future__ import annotations

from collections.abc import Sequence

from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.settings import ANSWER_LIMIT, DEFAULT_CONFIG
from xen_save_helper.ipc_schema.channel.messages import Dialect, MissingCpuFeatures
from xen_save_helper.ipc_schema.channel.waits import LONGEST_WAIT
from xen_save_helper.ipc_schema.control_directory import DEFAULT_DIRECTORY
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple


class Option(NamedTuple):
    """An option that has a value of type `kind`."""

    kind: type
    metavar: str
    text: str


OPTIONS: Final = {
    "connect": Option(str, "ENDPOINT", "the controller's ZeroMQ endpoint"),
    "secret_fd": Option(int, "N", "the descriptor from which the controller's secret is read"),
    "stream_stall": Option(
        float, "S", "seconds after which a stream that stands still is given up"
    ),
    "answer_limit": Option(float, "S", "seconds that a callback may stay unanswered"),
    "admission": Option(float, "S", "the stream's limit in seconds until the receiver has begun"),
    "start_limit": Option(float, "S", "seconds that the first message of the controller may take"),
    "outlive": Option(
        int, "1", "a restore's last pages may come over a link, when the controller has gone"
    ),
    "events": Option(str, "FILE", "append a JSON line for each event"),
    "faults": Option(
        str,
        "PLAN|@FILE",
        "inject faults, e.g. suspend:before-answer=kill (xen-toolstack faults list)",
    ),
    "operation": Option(
        str,
        "save|restore",
        "what the controller will ask for, for faults that strike before it does",
    ),
}
"""The options by their names in `Options`."""

ENVIRONMENT: Final = f"""\
Settings, from the environment or as lines NAME=VALUE of {DEFAULT_CONFIG}
(another file: XEN_SAVE_HELPER_CONFIG); the environment comes first. A wrong setting is ignored with
a warning in the log, as is a trace that cannot be written (a wrong FAULTS, DIALECT or HYPERVISOR is
an error: without it something else would be done):
  XEN_SAVE_HELPER_EVENTS            as --events
  XEN_SAVE_HELPER_FAULTS            as --faults
  XEN_SAVE_HELPER_STREAM_STALL      seconds after which a stream that stands still is given up; by
                                    default the helper waits, as libxl's does, and logs it every
                                    minute
  XEN_SAVE_HELPER_ANSWER_LIMIT      seconds that a callback may stay unanswered ({ANSWER_LIMIT:g};
                                    0: for ever); with a STREAM_STALL, the sum of both is how long
                                    the helper itself may do nothing
  Neither applies to a checkpointed stream (Remus, COLO).
  XEN_SAVE_HELPER_DIALECT           {", ".join(dialect.value for dialect in Dialect)}:
                                    libxl's, if the arguments do not tell
  XEN_SAVE_HELPER_HYPERVISOR        xen (the default), or sim:DIRECTORY for a simulated host
  XEN_SAVE_HELPER_ENGINE            own or libxenguest: what reads and writes the guest's memory.
                                    PV guests, Remus and COLO are always libxenguest's
  XEN_SAVE_HELPER_SPARSE            1: pages of zeros are left out, by our own engine. Only it can
                                    read such a stream; libxl's own helper refuses it at once
  XEN_SAVE_HELPER_CONTROL           the directory in which `xen-toolstack status`, `set` and others
                                    find it ({DEFAULT_DIRECTORY})
  XEN_SAVE_HELPER_DEVICE_MODEL      device_model_override of the HVM guests that are restored here,
                                    which libxl does not pass on (unchecked: skip the check); and,
                                    as an environment variable only, XEN_SAVE_HELPER_QEMU: the QEMU
                                    that the device model xen-save-helper-qemu starts
  XEN_SAVE_HELPER_MISSING_CPU_FEATURES
                                    {MissingCpuFeatures.IGNORE}: restore a guest even if the host
                                    lacks CPU features that it was offered (default:
                                    {MissingCpuFeatures.REFUSE}, before its first page)
The precopy policy of a live migration, if the toolstack has none (libxl has none) and any of these
is set; libxenguest's own is 5 rounds or fewer than 50 dirty pages:
  XEN_SAVE_HELPER_MAX_ITERATIONS    rounds before the guest is stopped (5)
  XEN_SAVE_HELPER_DIRTY_THRESHOLD   stop it earlier, with at most this many dirty pages (49),
  XEN_SAVE_HELPER_MAX_DOWNTIME_MS   or if these take no longer to send, at the last round's rate
  XEN_SAVE_HELPER_ABORT_AFTER       in place of MAX_ITERATIONS: rounds after which the migration
                                    is given up, and the guest runs on where it is"""

EXIT_STATUS: Final = (
    "0 the result was reported, 254 the controller is gone, 255 any error of its own."
)


def _options() -> str:
    """The options that people give, for the help."""
    return "\n".join(
        f"  --{name} {OPTIONS[name].metavar}: {OPTIONS[name].text}"
        for name in ("events", "faults", "operation")
    )


USAGE: Final = f"""\
{CONTEXT}: saves or restores one Xen domain for a toolstack, which starts it.

  {CONTEXT} --save-domain NUMBER...      started by libxl (set LIBXL_SAVE_HELPER to this
  {CONTEXT} --restore-domain NUMBER...   program's path); speaks libxl's protocol on stdin, stdout
  {CONTEXT} --connect ENDPOINT --secret-fd N [--stream-stall S] [--answer-limit S]
                              [--admission S] [--start-limit S] [--outlive 1]
                                           started by xen-toolstack; speaks over ZeroMQ
  {CONTEXT} --check                      says what each setting is, where it comes from, and
                                           what is wrong; exit status 1 if anything is
  {CONTEXT} --help | --version           this text or the version, and which Xen is found

{_options()}

{ENVIRONMENT}

Exit status: {EXIT_STATUS}
"""


class UsageError(Exception):
    """The command line or the environment is not right."""


class Options(NamedTuple):
    """Times are in seconds. `libxl` is libxl's part of the command line, empty if it did not start
    us. `stream_stall` and `answer_limit` are None if not given, texts empty. `admission` (0: none)
    replaces `stream_stall` until the receiver has begun (`Abort`)."""

    connect: str = ""
    secret_fd: int = -1
    stream_stall: float | None = None
    admission: float = 0.0
    answer_limit: float | None = None
    start_limit: float = 10.0
    outlive: int = 0
    events: str = ""
    faults: str = ""
    operation: str = ""
    libxl: tuple[str, ...] = ()


_MODES: Final = ("--save-domain", "--restore-domain")


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line without the program's name. Raises UsageError."""
    given: dict[str, Any] = {}
    rest = list(arguments)
    while rest and rest[0] not in _MODES:
        option = rest.pop(0)
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in OPTIONS:
            raise UsageError(f"unknown option {option!r}")
        if not rest:
            raise UsageError(f"{option} needs a value")
        given[name] = _value(option, rest.pop(0), OPTIONS[name].kind)
    options = Options(**given, libxl=tuple(rest))
    if rest and options.connect:
        raise UsageError("--connect and libxl's arguments exclude each other")
    if not rest and not options.connect:
        raise UsageError("--save-domain, --restore-domain or --connect is missing")
    if not rest and options.secret_fd < 0:
        raise UsageError("--secret-fd is missing")
    return options


def here() -> str:
    """A line on which Xen is found, or what is missing."""
    try:
        return xen_here()
    except OSError as bad:
        return bad.strerror or str(bad)


def xen_here() -> str:
    """A line on which Xen is found. Raises OSError that says what is missing."""
    from xen_save_helper.helper.hypervisors.xen.libraries import abi_version, load, versioned

    version = abi_version()
    load(versioned("libxenguest"), {})
    return f"found Xen {version} and its libraries"


def _value(option: str, text: str, kind: type) -> str | int | float:
    if kind is str:
        return text
    try:
        number: int | float = kind(text)
    except ValueError:
        number = -1
    most = LONGEST_WAIT if kind is float else 2**31 - 1
    if not 0 <= number <= most:
        raise UsageError(f"{option} {text!r}: want a number from 0 to {most:.0f}")
    return number
