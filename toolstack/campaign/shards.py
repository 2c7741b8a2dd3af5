"""Shards of a campaign: parts that machines which know nothing of each other can run."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from xen_save_helper.toolstack.campaign.matrix import Cell

_WRITTEN: Final = re.compile(r"([1-9]\d*)/([1-9]\d*)", re.ASCII)


class Shard(NamedTuple):
    """Part `number` of `of`, from 1 on."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError unless it is K/N with 1 <= K <= N."""
        match = _WRITTEN.fullmatch(text)
        if match is None or int(match[1]) > int(match[2]):
            raise ValueError(f"invalid shard {text!r}: want K/N, such as 3/8, from 1/8 to 8/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def part(self, cells: Sequence[Cell]) -> list[Cell]:
        """The shard's cells, in their order. Each cell is in one shard, the numbers of the shards'
        cells differ by one at most, and so do those of each action in a mode: actions are what
        makes a run long."""
        dealt = sorted(range(len(cells)), key=lambda index: _place(cells[index]))
        return [cells[index] for index in sorted(dealt[self.number - 1 :: self.of])]


def _place(cell: Cell) -> tuple[str, str, int]:
    """Where a cell is in the pack from which all shards are dealt in turn. Within an action by
    chance: neighbours in the matrix are alike, and would come to the same shards."""
    return cell.mode.value, str(cell.aim.action), zlib.crc32(str(cell).encode())
