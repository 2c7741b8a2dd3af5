"""A campaign as one HTML page that needs nothing else: no network, no other file.

For each mode a matrix of points and actions; a cell shows what was expected, what was seen, and the
trace as a timeline of both sides. This module writes a frame with the data; report.js renders it,
and unpacks a trace when it is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Final

from xen_save_helper.toolstack import self_contained
from xen_save_helper.toolstack.campaign.report.figures import Report, headline
from xen_save_helper.toolstack.campaign.report.html_data import entries_of, index_of

_BODY: Final = """\
<noscript><h1>{title}</h1><p class="note">Without JavaScript there is no more to see.</p>\
</noscript>
<script type="application/json" id="index">{index}</script>
{blocks}"""


def write(report: Report, path: Path, timelines: Mapping[int, str] = MappingProxyType({})) -> None:
    """`timelines` are links by the verdicts' numbers. Raises OSError."""
    path.write_text(page(report, timelines), encoding="utf-8", errors="backslashreplace")


def page(report: Report, timelines: Mapping[int, str] = MappingProxyType({})) -> str:
    entries, blocks = entries_of(report, timelines)
    title = f"{report.title}: {headline(report)}"
    body = _BODY.format(
        title=escape(title),
        index=_json(index_of(report, entries)),
        # In base64.
        blocks="\n".join(
            f'<script type="text/plain" class="block">{one}</script>' for one in blocks
        ),
    )
    return self_contained.page(__package__, "report", title, body)


def _json(value: object) -> str:
    """JSON that may stand in a script."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c")
