"""libxl's side of save, restore and live migration, under libxl's names.

The API, importable from here; nothing is loaded before it is used:

    import asyncio
    import socket

    from xen_save_helper.toolstack import (
        Context, MemoryStrategy, domain_create_restore, domain_live_migrate,
    )

    async def migrate(name, source_dir, destination_dir):
        source = Context.open(f"sim:{source_dir}")
        destination = Context.open(f"sim:{destination_dir}")
        domid = source.host.find(name)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            saved, restored = await asyncio.gather(
                domain_live_migrate(
                    source, domid, ours.fileno(), 0, ours.fileno(), MemoryStrategy.POSTCOPY
                ),
                domain_create_restore(
                    destination, source.host.config(domid), name, theirs.fileno(), theirs.fileno()
                ),
            )
        return saved, restored

On a Xen host, `Context.open("xen")` gives real domains; libxenguest, which does the work there, has
no postcopy.

Both operations always end, within the context's `limits`, with an `rc` (an `Error`). What follows
is up to the caller: to destroy the source's domain, resume it, or keep it suspended, as `rc`,
`suspended` and `postcopy_transitioned` allow. `xen-toolstack migrate` does that with a handshake.

A cancellation ends an operation in order and is then raised; `on_end` is told how it ended.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures
    from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
    from xen_save_helper.ipc_schema.errors import Error
    from xen_save_helper.toolstack.context import Context
    from xen_save_helper.toolstack.limits import Limits
    from xen_save_helper.toolstack.operations.domain_restore import domain_create_restore
    from xen_save_helper.toolstack.operations.domain_save import (
        SUSPEND_DEBUG,
        SUSPEND_LIVE,
        domain_live_migrate,
        domain_suspend,
    )
    from xen_save_helper.toolstack.operations.restore import RestoreResult
    from xen_save_helper.toolstack.operations.save import PostcopyTransitioned, SaveResult
    from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

__all__ = [
    "SUSPEND_DEBUG",
    "SUSPEND_LIVE",
    "Context",
    "Error",
    "Limits",
    "MemoryStrategy",
    "MissingCpuFeatures",
    "PostcopyTransitioned",
    "PrecopyLimits",
    "RestoreResult",
    "SaveResult",
    "__version__",
    "domain_create_restore",
    "domain_live_migrate",
    "domain_suspend",
]

__version__: str

_HOMES = {
    "Context": "toolstack.context",
    "Error": "ipc_schema.errors",
    "Limits": "toolstack.limits",
    "MemoryStrategy": "toolstack.rules.precopy_policy",
    "MissingCpuFeatures": "ipc_schema.channel.messages",
    "PostcopyTransitioned": "toolstack.operations.save",
    "PrecopyLimits": "ipc_schema.channel.precopy_rule",
    "RestoreResult": "toolstack.operations.restore",
    "SaveResult": "toolstack.operations.save",
    "domain_create_restore": "toolstack.operations.domain_restore",
}
"""The module of each name; the names that are not here are in `domain_save`."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("xen_save_helper.ipc_schema.version").version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "toolstack.operations.domain_save")
    return getattr(import_module(f"xen_save_helper.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
