"""The limits of one helper: its command line's go before those of its settings."""

from __future__ import annotations

from collections.abc import Iterator

from xen_save_helper.helper.command_line import Options
from xen_save_helper.helper.settings import ANSWER_LIMIT, PREFIX, Settings
from xen_save_helper.ipc_schema.channel.messages import StreamType
from xen_save_helper.ipc_schema.channel.precopy_rule import LIBXENGUEST_PRECOPY, PrecopyLimits


def stall_limit_of(options: Options, settings: Settings) -> float:
    """Seconds; 0 for no limit unless one is set: waiting for the other side is no failure."""
    given = settings.stream_stall if options.stream_stall is None else options.stream_stall
    return given or 0.0


def answer_limit_of(options: Options, settings: Settings) -> float:
    """Seconds that the controller may take to answer a callback; 0 for no limit."""
    if options.answer_limit is not None:
        return options.answer_limit
    return ANSWER_LIMIT if settings.answer_limit is None else settings.answer_limit


def limits_that_do_not_hold(settings: Settings, stream_type: StreamType) -> Iterator[str]:
    """A line for each limit that is set but must not end a checkpointed stream."""
    for name in ("stream_stall", "answer_limit"):
        if getattr(settings, name) is not None:
            yield (
                f"{PREFIX}{name.upper()} is ignored for a {stream_type.name} stream: giving it up "
                "would be taken for the other side's death, and two guests would run"
            )


def precopy_limits_of(settings: Settings) -> PrecopyLimits | None:
    """The precopy policy of the settings; None if they have none, for the engine's own."""
    figures = {
        "dirty_threshold": settings.dirty_threshold,
        "max_rounds": settings.max_iterations,
        "max_downtime_ms": settings.max_downtime_ms,
        "abort_after": settings.abort_after,
    }
    chosen = {name: figure for name, figure in figures.items() if figure is not None}
    return LIBXENGUEST_PRECOPY._replace(**chosen) if chosen else None
