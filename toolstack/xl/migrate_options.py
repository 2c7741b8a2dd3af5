"""The destination of a migration, and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.channel.precopy_rule import LIBXL_PRECOPY, PrecopyLimits
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.toolstack.rules import arguments
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import Host


@dataclass(frozen=True)
class HostDestination:
    """A host on this machine; its receiver is started with `arguments` after `receive`."""

    directory: Path
    host: Host
    arguments: Sequence[str] = ()

    def __str__(self) -> str:
        return str(self.directory)


@dataclass(frozen=True)
class CommandDestination:
    """A command whose stdin and stdout lead to a receiver, as those of `ssh` do. What it writes to
    stderr is shown on ours, unless `keep_stderr`; if it fails, its last line is told as well."""

    command: str
    keep_stderr: bool = False

    def __str__(self) -> str:
        return self.command


Destination = HostDestination | CommandDestination


@dataclass(frozen=True)
class MigrateOptions:
    """How to migrate. `bandwidth`: bytes per second at most, 0 for no limit. `paused`: the guest
    stays paused at the destination. `config`: sent instead of the domain's own configuration.
    `debug`: SUSPEND_DEBUG, all memory is sent again and compared. `sparse`: leave
    out pages of zeros; the receiver must be ours. `link`, of a postcopy: `ADDRESS[:PORT]`, an IP
    address of this host at which the receiver fetches the last pages, over a connection of its own;
    whatever becomes of the migration's, the guest is not lost.

    Raises TypeError and ValueError for invalid options and combinations.
    """

    strategy: MemoryStrategy = MemoryStrategy.DEFAULT
    precopy: PrecopyLimits = LIBXL_PRECOPY
    bandwidth: int = 0
    paused: bool = False
    config: Mapping[str, Any] | None = None
    debug: bool = False
    sparse: bool = False
    link: str = ""

    def __post_init__(self) -> None:
        arguments.instance("strategy", self.strategy, MemoryStrategy)
        arguments.instance("precopy", self.precopy, PrecopyLimits)
        arguments.bandwidth(self.bandwidth)
        arguments.instance("sparse", self.sparse, bool)
        if self.config is not None:
            arguments.configuration(self.config)
        arguments.link(self.link)
        if self.strategy is not MemoryStrategy.POSTCOPY:
            if self.link:
                raise ValueError("link: only a postcopy has last pages that come later")
            return
        paused = self.paused and not self.link
        for name, given, why in (
            ("paused", paused, "the guest runs before all its memory is there"),
            ("debug", self.debug, "the guest runs, and changes the memory to compare"),
            ("abort_after", self.precopy.abort_after is not None, "postcopy always converges"),
        ):
            if given:
                raise ValueError(f"postcopy excludes {name}: {why}")

    @property
    def mode(self) -> str:
        if self.strategy is MemoryStrategy.POSTCOPY:
            return "postcopy"
        return "precopy" if self.precopy.max_rounds else "stop-and-copy"

    @property
    def asked_for(self) -> str:
        """What no receiver of xl's has; "" if nothing was asked for."""
        if self.strategy is MemoryStrategy.POSTCOPY:
            return "postcopy"
        return "sparse streams" if self.sparse else ""

    def optional_flags(self, hypervisor: str) -> int:
        """The flags of the xl header. A verdict, and word that it receives, are asked for if the
        receiver must be ours: only ours takes a simulated guest, does postcopy, or restores a
        sparse stream. xl's sends neither. Without a link the helper of a postcopy hears from the
        receiver's that it is ready."""
        flags = 0
        if self.link:
            flags |= xl_header.OPTIONAL_LINK
        elif self.strategy is MemoryStrategy.POSTCOPY:
            flags |= xl_header.OPTIONAL_POSTCOPY
        if self.sparse:
            flags |= xl_header.OPTIONAL_SPARSE
        if flags or hypervisor != XEN:
            flags |= xl_header.OPTIONAL_VERDICT
            if not flags & xl_header.OPTIONAL_POSTCOPY:
                flags |= xl_header.OPTIONAL_RECEIVING
        return flags
