"""The command line that libxl gives its save helper, in every generation (libxl_save_callout.c).

After `--save-domain` or `--restore-domain` come only decimal numbers, in an order that changed four
times. Their count tells which generation is speaking and, if two share a count, the one difference
that libxl cannot avoid does: a stream type is at most 2, and `cbflags` is at least 8 if libxl
provides any callback, which it always does.
"""

from __future__ import annotations

from collections.abc import Sequence

from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Dialect, Operation, StreamType, XCFlags
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

MODE: Final = {Operation.SAVE: "--save-domain", Operation.RESTORE: "--restore-domain"}

_PORTS: Final = "store_evtchn store_domid console_evtchn console_domid"


class _Layout(NamedTuple):
    dialect: Dialect
    releases: str
    names: tuple[str, ...]


def _layout(dialect: Dialect, releases: str, names: str) -> _Layout:
    return _Layout(dialect, releases, tuple(names.split()))


# fmt: off
_LAYOUTS: Final = {
    Operation.SAVE: (
        _layout(Dialect.MAINLINE, "4.14 and later",
                "io_fd back_fd domid xcflags cbflags stream_type"),
        _layout(Dialect.MAINLINE_4_7, "4.10 to 4.13",
                "io_fd back_fd domid xcflags hvm cbflags stream_type"),
        _layout(Dialect.MAINLINE_4_7, "4.7 to 4.9",
                "io_fd back_fd domid max_iters max_factor xcflags hvm cbflags stream_type"),
        _layout(Dialect.SERIES, "postcopy series",
                "io_fd back_fd domid live debug stream_type cbflags"),
    ),
    Operation.RESTORE: (
        _layout(Dialect.MAINLINE, "4.14 and later",
                f"io_fd back_fd domid {_PORTS} cbflags stream_type"),
        _layout(Dialect.MAINLINE_4_7, "4.10 to 4.13",
                f"io_fd back_fd domid {_PORTS} hvm pae cbflags stream_type"),
        _layout(Dialect.MAINLINE_4_7, "4.7 to 4.9",
                f"io_fd back_fd domid {_PORTS} hvm pae superpages cbflags stream_type"),
        _layout(Dialect.SERIES, "postcopy series",
                f"io_fd back_fd domid {_PORTS} stream_type cbflags"),
    ),
}
# fmt: on

_DESCRIPTORS: Final = frozenset({"io_fd", "back_fd"})
_HIGHEST: Final = {"stream_type": max(StreamType), "live": 1, "debug": 1}
_HIGHEST_XCFLAGS: Final = {Dialect.MAINLINE: 3, Dialect.MAINLINE_4_7: 31}
"""Up to 4.13 there are three more bits, which libxc ignores: HVM (set for every HVM guest),
standard VGA, and compressed checkpoints."""
_MEANINGFUL: Final = XCFlags.LIVE | XCFlags.DEBUG
_LOWEST_CALLBACK_BIT: Final = 8


class HelperArguments(NamedTuple):
    """What libxl asks for. `request.xcflags` keeps LIVE and DEBUG only; fields that libxl does not
    pass have their defaults. `hvm` is None if the dialect does not have it."""

    request: HelperRequest
    dialect: Dialect
    cbflags: int = 0
    hvm: bool | None = None


def parse(arguments: Sequence[str], dialect: Dialect | None = None) -> HelperArguments:
    """Parse a command line without the program's name; the rule above finds the dialect if
    `dialect` is None. Raises ValueError that says what would be right."""
    modes = {text: operation for operation, text in MODE.items()}
    operation = modes.get(arguments[0]) if arguments else None
    if operation is None:
        found = f"{arguments[0]!r} first" if arguments else "no arguments"
        raise ValueError(f"{found}: want {' or '.join(modes)} and numbers, as libxl gives them")
    texts = arguments[1:]
    fits = [
        (layout, values)
        for layout in _LAYOUTS[operation]
        if dialect in (None, layout.dialect) and len(layout.names) == len(texts)
        for values in (_values(layout, texts),)
        if dialect is not None or _plausible(layout, values)
    ]
    if not fits:
        known = "; ".join(
            f"{len(layout.names)} ({layout.releases}): {' '.join(layout.names)}"
            for layout in _LAYOUTS[operation]
            if dialect in (None, layout.dialect)
        )
        raise ValueError(
            f"{arguments[0]} with {len(texts)} numbers matches no known libxl: {known}"
        )
    if len(fits) > 1:
        choice = " or ".join(layout.dialect.value for layout, _values in fits)
        raise ValueError(f"{arguments[0]}: the numbers fit dialects {choice}; one must be named")
    layout, values = fits[0]
    flags = XCFlags.LIVE * values.get("live", 0) | XCFlags.DEBUG * values.get("debug", 0)
    if values["stream_type"] not in set(StreamType):
        raise ValueError(f"{arguments[0]}: stream_type {values['stream_type']}: want 0 to 2")
    given: dict[str, Any] = {name: values[name] for name in HelperRequest._fields if name in values}
    given["xcflags"] = values.get("xcflags", flags) & _MEANINGFUL
    given["stream_type"] = StreamType(values["stream_type"])
    return HelperArguments(
        HelperRequest(operation, **given),
        layout.dialect,
        values["cbflags"],
        bool(values["hvm"]) if "hvm" in values else None,
    )


def build(arguments: HelperArguments) -> list[str]:
    """Build the command line, without the program's name, that a libxl of `arguments.dialect` gives
    (for MAINLINE_4_7 the later layout, of 4.10 to 4.13)."""
    request = arguments.request
    layout = next(row for row in _LAYOUTS[request.operation] if row.dialect is arguments.dialect)
    numbers = request._asdict() | {
        "live": bool(request.xcflags & XCFlags.LIVE),
        "debug": bool(request.xcflags & XCFlags.DEBUG),
        "hvm": bool(arguments.hvm),
        "pae": bool(arguments.hvm),
        "cbflags": arguments.cbflags,
    }
    return [MODE[request.operation], *(str(int(numbers[name])) for name in layout.names)]


def _values(layout: _Layout, texts: Sequence[str]) -> dict[str, int]:
    return {name: _number(name, text) for name, text in zip(layout.names, texts, strict=True)}


def _number(name: str, text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 2**32:
        return int(text)
    # libxl prints a descriptor as an int, -1 for none.
    if name in _DESCRIPTORS and text == "-1":
        return -1
    raise ValueError(f"{name} {text!r}: want a decimal number below 2**32")


def _plausible(layout: _Layout, values: dict[str, int]) -> bool:
    return (
        all(values.get(name, 0) <= highest for name, highest in _HIGHEST.items())
        and values.get("xcflags", 0) <= _HIGHEST_XCFLAGS.get(layout.dialect, 0)
        and (values["cbflags"] == 0 or values["cbflags"] >= _LOWEST_CALLBACK_BIT)
    )
