"""The catalogue: every message between controller and save helper.

Name, fields, sender, operations, kind of answer and the number in each libxl dialect are defined
here and nowhere else; both encodings, both ends and the documentation are made from it. The
callback messages are those of `libxl_save_msgs_gen.pl`; the channel messages exist on ZeroMQ only,
in place of the command line, the bare int and SIGTERM of libxl's pipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, StrEnum

from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

PROTOCOL_VERSION: Final = 1
"""Version of the ZeroMQ conversation, shown in `hello`; both ends must have the same."""

MAX_BODY: Final = 65_535
"""Bytes in the longest message, on either channel (libxl's length field is a u16)."""

NO_ERRNO: Final = 2**32 - 1
"""`errnoval` of a `log` without one: libxc's -1, as a u32."""


class Kind(Enum):
    """The type of a field. The pipe carries all but BOOL and BYTES, in x86-64 sizes."""

    U32 = "u32"
    UNSIGNED = "unsigned"
    INT = "int"
    LONG = "long"
    ULONG = "unsigned long"
    PFN = "xen_pfn_t"
    STRING = "STRING"
    BYTES = "bytes"
    BOOL = "bool"


INTEGER_RANGES: Final[Mapping[Kind, tuple[int, int]]] = {
    Kind.U32: (0, 2**32 - 1),
    Kind.UNSIGNED: (0, 2**32 - 1),
    Kind.INT: (-(2**31), 2**31 - 1),
    Kind.LONG: (-(2**63), 2**63 - 1),
    Kind.ULONG: (0, 2**64 - 1),
    Kind.PFN: (0, 2**64 - 1),
}
"""Inclusive bounds of the integer kinds."""


class Operation(Enum):
    """What a helper is started for."""

    SAVE = "save"
    RESTORE = "restore"


class Sender(Enum):
    HELPER = "helper"
    CONTROLLER = "controller"


class Answer(Enum):
    """How a message is answered.

    SYNC: before the controller does anything else (`reply`). ASYNC: later, when the work it asks
    for is done (`async_callback_done`, libxl__xc_domain_saverestore_async_callback_done).
    """

    NONE = "none"
    SYNC = "sync"
    ASYNC = "async"


class Dialect(Enum):
    """The generations of libxl's pipe protocol; each has its own numbers and arguments."""

    MAINLINE = "mainline"
    """Xen 4.14 and later."""
    MAINLINE_4_7 = "mainline-4.7"
    """Xen 4.7 to 4.13."""
    SERIES = "postcopy-series"
    """Branch `postcopy-v2`."""


class Field(NamedTuple):
    name: str
    kind: Kind


class Message(NamedTuple):
    """One row of the catalogue.

    `numbers` holds the message's number in each dialect that has it; empty for a channel message.
    `refusal` is the value that tells libxc "failed", for a message with an answer.
    """

    name: str
    fields: tuple[Field, ...]
    sender: Sender
    operations: frozenset[Operation]
    answer: Answer
    numbers: Mapping[Dialect, int]
    refusal: int | None
    doc: str

    @property
    def on_pipe(self) -> bool:
        return bool(self.numbers)


def _fields(text: str) -> tuple[Field, ...]:
    pairs = (part.rsplit(" ", 1) for part in text.split(", ") if part)
    return tuple(Field(name, Kind(kind)) for kind, name in pairs)


_SAVE = frozenset({Operation.SAVE})
_RESTORE = frozenset({Operation.RESTORE})
_BOTH = _SAVE | _RESTORE
_NONE, _SYNC, _ASYNC = Answer.NONE, Answer.SYNC, Answer.ASYNC


def _callback(
    name: str,
    fields: str,
    operations: frozenset[Operation],
    answer: Answer,
    numbers: tuple[int | None, int | None, int | None],
    refusal: int | None,
    doc: str,
) -> Message:
    """A callback message; `numbers` in the order 4.7-4.13, 4.14+, series."""
    order = (Dialect.MAINLINE_4_7, Dialect.MAINLINE, Dialect.SERIES)
    numbered = {d: n for d, n in zip(order, numbers, strict=True) if n is not None}
    return Message(name, _fields(fields), Sender.HELPER, operations, answer, numbered, refusal, doc)


def _channel(
    name: str, fields: str, sender: Sender, operations: frozenset[Operation], doc: str
) -> Message:
    return Message(name, _fields(fields), sender, operations, Answer.NONE, {}, None, doc)


_BITS_BEYOND_THE_SERIES: Final = {"static_data_done": 12}
"""Bits of ZeroMQ's `cbflags` for callbacks that have no number in the postcopy series."""

# fmt: off
_ROWS: Final = (
    _callback("log", "u32 level, u32 errnoval, STRING context, STRING formatted",
              _BOTH, _NONE, (1, 1, 1), None,
              "A libxc log line; `level` is a `XentoollogLevel`, `errnoval` 2**32-1 for none."),
    _callback("progress",
              "STRING context, STRING doing_what, unsigned long done, unsigned long total",
              _BOTH, _NONE, (2, 2, 2), None,
              "`done` of `total` pages of what `doing_what` names."),
    _callback("suspend", "", _BOTH, _ASYNC, (3, 3, 3), 0,
              "Suspend the guest: 1 done, 0 failed."),
    _callback("postcopy", "", _BOTH, _ASYNC, (4, 4, 4), -1,
              "Remus and COLO, after a checkpoint; `aftercopy` in the postcopy series: "
              ">0 go on, 0 end checkpointing, <0 failed."),
    _callback("checkpoint", "", _BOTH, _ASYNC, (5, 5, 5), -1,
              "A checkpoint. Save: 1 another, 0 end, <0 failed; restore: 1 go on, 2 fail over, "
              "else error."),
    _callback("wait_checkpoint", "", _BOTH, _ASYNC, (6, 6, 6), -1,
              "COLO: wait for the next checkpoint: 1 another, 0 end, <0 failed."),
    _callback("switch_qemu_logdirty", "u32 domid, unsigned enable", _SAVE, _ASYNC, (7, 7, 7), -1,
              "Turn the device model's log-dirty mode on or off: 0 done, -1 failed."),
    _callback("static_data_done", "unsigned missing", _RESTORE, _SYNC, (None, 8, None), -1,
              "The static data is read; `missing` bit 0 CPUID, bit 1 MSR policy: 0 done, "
              "else failed."),
    _callback("restore_results", "xen_pfn_t store_gfn, xen_pfn_t console_gfn",
              _RESTORE, _NONE, (8, 9, 8), None,
              "Where the restored guest has its xenstore and console rings."),
    _callback("complete", "int retval, int errnoval", _BOTH, _SYNC, (9, 10, 9), 0,
              "The end of libxc's work; `errnoval` is 0 when `retval` is 0. "
              "The answer is ignored."),
    _callback("precopy_policy", "unsigned iteration, unsigned total_written, int dirty_count",
              _SAVE, _SYNC, (None, None, 10), -1,
              "struct precopy_stats by value, `dirty_count` -1 if unknown; "
              "the answer is a `PrecopyPolicy`."),
    _callback("postcopy_transition", "", _BOTH, _ASYNC, (None, None, 11), 0,
              "Write (save) or read (restore) libxl's records that let the guest run at the "
              "destination: 1 done, 0 failed."),

    _channel("hello", "u32 version, u32 pid, bytes nonce, bytes proof", Sender.HELPER, _BOTH,
             "The helper's first message: its protocol version, and proof that it knows the "
             "secret."),
    _channel("start",
             "STRING operation, bytes proof, int io_fd, int back_fd, u32 domid, unsigned xcflags, "
             "unsigned long cbflags, unsigned stream_type, u32 store_evtchn, u32 store_domid, "
             "u32 console_evtchn, u32 console_domid, STRING hypervisor, STRING engine, "
             "unsigned long bandwidth, bool postcopy, STRING missing_cpu_features, "
             "bool sparse, unsigned long max_downtime_ms, STRING link, STRING control",
             Sender.CONTROLLER, _BOTH,
             "What to do; the fields of libxl's command line, the hypervisor to work on "
             "(`sim:DIRECTORY` or `xen`), the engine, a limit of the stream in bytes a second "
             "(0 none), whether the peer and the caller admit postcopy, and what a restore does "
             "with a guest that was offered more than the host's CPU has (a `MissingCpuFeatures`); "
             "whether a save may leave out pages of zeros; the milliseconds of downtime in which a "
             "postcopy may send the guest's hottest pages ahead (0 none); where the page server of "
             "a save listens, `ADDRESS:PORT` (empty for none), and the directory in which it, or "
             "the pager of a restore, can be asked. "
             "`back_fd` is recv_fd for a save, send_back_fd for a restore; a callback's bit in "
             "`cbflags` is its number in the postcopy series, or, for those that the series lacks, "
             f"one of {_BITS_BEYOND_THE_SERIES}."),
    _channel("statistics",
             "unsigned rounds, unsigned long pages, unsigned long bytes, "
             "unsigned long postcopy_pages, unsigned long postcopy_faults",
             Sender.HELPER, _BOTH,
             "What the stream carried, sent once before `complete`."),
    _channel("page_server", "STRING server, unsigned long pages, STRING refusal", Sender.HELPER,
             _SAVE,
             "What has become of the `link` of `start`: the last pages are left to another "
             "process, which `server` names in the directory `control`; or that is empty, and "
             "`refusal` says why all goes over the stream. Sent before `complete`."),
    _channel("reply", "unsigned long to, int value", Sender.CONTROLLER, _BOTH,
             "The answer to the sync callback with sequence number `to`."),
    _channel("async_callback_done", "unsigned long to, int value", Sender.CONTROLLER, _BOTH,
             "The answer to the async callback with sequence number `to`."),
    _channel("abort", "int rc, STRING reason", Sender.CONTROLLER, _BOTH,
             "Give up: libxc's error path, then `complete`. SIGTERM is sent too, for a helper that "
             "is blocked in its stream."),
    _channel("refused", "STRING reason", Sender.CONTROLLER, _BOTH,
             "To a peer that is not the helper, or breaks the protocol; it ends the conversation."),
)
# fmt: on

CATALOGUE: Final[Mapping[str, Message]] = {row.name: row for row in _ROWS}
"""Every message by name; callbacks first, by number."""

CALLBACKS: Final = tuple(row for row in _ROWS if row.on_pipe)
CHANNEL_MESSAGES: Final = tuple(row for row in _ROWS if not row.on_pipe)

UNCONDITIONAL: Final = frozenset({"log", "progress", "complete"})
"""Callbacks without a bit in `cbflags`: fixed functions in libxl, always provided."""


def by_number(dialect: Dialect) -> dict[int, Message]:
    """The callback messages that `dialect` has, by number."""
    return {row.numbers[dialect]: row for row in CALLBACKS if dialect in row.numbers}


def callback_bit(message: Message, dialect: Dialect | None) -> int:
    """The bit of `message` in `cbflags`; `dialect` is None on ZeroMQ, for which see `start`."""
    if dialect is not None:
        return 1 << message.numbers[dialect]
    if Dialect.SERIES in message.numbers:
        return 1 << message.numbers[Dialect.SERIES]
    return 1 << _BITS_BEYOND_THE_SERIES[message.name]


def callbacks_of(cbflags: int, dialect: Dialect | None) -> frozenset[str]:
    """The names of the callbacks that `cbflags` says the controller provides."""
    rows = CALLBACKS if dialect is None else by_number(dialect).values()
    named = (row for row in rows if row.name not in UNCONDITIONAL)
    return frozenset(row.name for row in named if cbflags & callback_bit(row, dialect))


class PrecopyPolicy(IntEnum):
    """The answers to `precopy_policy` (XGS_POLICY_*)."""

    ABORT = -1
    CONTINUE_PRECOPY = 0
    STOP_AND_COPY = 1
    POSTCOPY = 2


class XCFlags(IntEnum):
    """Bits of `xcflags`."""

    LIVE = 1
    DEBUG = 2


class StreamType(IntEnum):
    """`xc_stream_type_t`."""

    PLAIN = 0
    REMUS = 1
    COLO = 2


class MissingCpuFeatures(StrEnum):
    """What a restore does with a guest that was offered CPU features which the host lacks."""

    REFUSE = "refuse"
    IGNORE = "ignore"
    """Restore it: a guest need not use every feature it is offered."""


class XentoollogLevel(IntEnum):
    """`xentoollog_level`."""

    DEBUG = 1
    VERBOSE = 2
    DETAIL = 3
    PROGRESS = 4
    INFO = 5
    NOTICE = 6
    WARN = 7
    ERROR = 8
    CRITICAL = 9
