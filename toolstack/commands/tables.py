"""Tables that fit a terminal: a name is never cut, and no word of a figure is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

BETWEEN = 2
"""Columns between those of a table."""
_NARROWEST = 24
"""Columns in which a person can still read a sentence, or a destination."""

_FARTHER_IN = (0, 0, 0, BETWEEN)

Cell = str | Text


def fitted(
    width: int,
    titles: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    free: str,
    left: Collection[str] = (),
) -> RenderableType:
    """A table whose first column has names. On a terminal of `width` columns only the column `free`
    is folded; `left` are the others that are aligned there. On one that is too narrow for that,
    each row has lines of its own: the name, the figures with their titles, and what is `free`."""
    widths = [
        max(cell_len(str(cell)) for cell in (title, *(row[place] for row in rows)))
        for place, title in enumerate(titles)
    ]
    at = titles.index(free)
    widths[at] = min(widths[at], _NARROWEST)
    if sum(widths) + BETWEEN * (len(titles) - 1) > width:
        return Group(*(_block(titles, row, at, width) for row in rows))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, title in enumerate(titles):
        if place == at:
            table.add_column(title, overflow="fold", min_width=widths[at])
        else:
            on_the_left = place == 0 or title in left
            table.add_column(
                title, justify="left" if on_the_left else "right", no_wrap=True,
                min_width=widths[place],
            )  # fmt: skip
    for row in rows:
        # A guest's name is no markup.
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def _block(titles: Sequence[str], row: Sequence[Cell], free: int, width: int) -> Group:
    figures = [
        f"{title if title == 'ID' else title.lower()} {cell}"
        for place, (title, cell) in enumerate(zip(titles, row, strict=True))
        if place not in {0, free} and str(cell) != "-"
    ]
    parts: list[Cell] = [*_lines(figures, width - BETWEEN)]
    if free and str(row[free]):
        parts.append(row[free])
    indented = (Padding(Text.assemble(part, overflow="fold"), _FARTHER_IN) for part in parts)
    return Group(Text(str(row[0]), style="bold", overflow="fold"), *indented)


def _lines(figures: Sequence[str], width: int) -> Iterator[str]:
    """Figures after each other, with none in two lines."""
    line = ""
    for figure in figures:
        longer = f"{line}, {figure}" if line else figure
        if line and len(longer) >= width:
            yield f"{line},"
            line = figure
        else:
            line = longer
    if line:
        yield line
