"""The save helper: one process, one save or one restore."""

from __future__ import annotations

from xen_save_helper.ipc_schema.hints import Any

__version__: str


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Imported late: it would slow down every helper's start.
    from xen_save_helper.ipc_schema.version import version

    return version()
