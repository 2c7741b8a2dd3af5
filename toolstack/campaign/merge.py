"""One campaign of the shards of it that ran elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack.campaign.campaign import Selection, State, StateError
from xen_save_helper.toolstack.campaign.shards import Shard

_SHOWN: Final = 3
"""How many of the cells that are wrong an error names."""


class MergeError(Exception):
    """The directories are not shards of one campaign; the text names them."""


@dataclass(frozen=True)
class Shards:
    """Shards of one campaign by their numbers; there are `of` in all."""

    selection: Selection
    of: int
    states: Mapping[int, State]

    @property
    def missing(self) -> list[Shard]:
        """Those that were not given."""
        return [
            Shard(number, self.of) for number in range(1, self.of + 1) if number not in self.states
        ]

    def unfinished(self) -> dict[Shard, int]:
        """Those that have not run all of their cells, and how many they lack."""
        cells = self.selection.cells()
        lacking = {
            Shard(number, self.of): sum(
                str(cell) not in state.verdicts for cell in Shard(number, self.of).part(cells)
            )
            for number, state in self.states.items()
        }
        return {shard: lack for shard, lack in sorted(lacking.items()) if lack}

    def write(self, path: Path) -> None:
        """Write the state of the whole campaign, with the verdicts as the shards have them. Raises
        OSError; then there is no file."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            State(partial).begin(self.selection)
            with open(partial, "ab") as file:
                for number in sorted(self.states):
                    file.writelines(self.states[number].lines())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def read_shards(files: Sequence[Path]) -> Shards:
    """Read the states of shards. Raises MergeError unless they are different shards of one
    campaign, of this version, with its plans."""
    found: dict[int, Path] = {}
    states: dict[int, State] = {}
    first: tuple[Path, Selection, int] | None = None
    for path in files:
        state, selection, shard = _read(path)
        if first is None:
            first = path, selection, shard.of
        if selection != first[1]:
            raise MergeError(
                f"{path} and {first[0]} are of different campaigns: {selection.title!r} and "
                f"{first[1].title!r}, or with other modes, guests or limits"
            )
        if shard.of != first[2]:
            raise MergeError(f"{path} is one of {shard.of} shards, {first[0]} one of {first[2]}")
        if shard.number in found:
            raise MergeError(f"{path} and {found[shard.number]} are both shard {shard}")
        found[shard.number], states[shard.number] = path, state
    if first is None:
        raise MergeError("no shards to merge")
    return Shards(first[1], first[2], states)


def _read(path: Path) -> tuple[State, Selection, Shard]:
    if not path.exists():
        raise MergeError(f"{path}: no campaign is there")
    try:
        state = State(path, only_read=True)
    except StateError as error:
        raise MergeError(str(error)) from error
    if state.selection is None:
        raise MergeError(f"{path}: no campaign is there")
    if state.shard is None:
        raise MergeError(f"{path} is a whole campaign, not a shard of one")
    if state.version != version():
        raise MergeError(
            f"{path} is of version {state.version}, and this is {version()}: its plans may be "
            "others; merge with the version that ran the shards"
        )
    own = {str(cell) for cell in state.shard.part(state.selection.cells())}
    strange = [cell for cell in state.verdicts if cell not in own]
    if strange:
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        raise MergeError(
            f"{path} has runs that shard {state.shard} of this campaign does not have: "
            f"{', '.join(strange[:_SHOWN])}{more}"
        )
    return state, state.selection, state.shard
