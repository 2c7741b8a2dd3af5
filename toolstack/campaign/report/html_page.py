"""A campaign as one HTML page that needs nothing else: no network, no other file.

For each mode a matrix of points and actions; a cell shows what was expected, what was seen, and the
trace as a timeline of both sides. This module writes a frame with the data; report.js renders it,
and unpacks a trace when it is opened."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

from xen_save_helper.toolstack.campaign.report.figures import Report, headline
from xen_save_helper.toolstack.campaign.report.html_data import entries_of, index_of

_FRAME: Final = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">\
<meta http-equiv="Content-Security-Policy" content="{policy}">\
<meta name="viewport" content="width=device-width, initial-scale=1">\
<meta name="color-scheme" content="light dark">\
<title>{title}</title><style>{style}</style></head>
<body><noscript><h1>{title}</h1><p class="note">Without JavaScript there is no more to see.</p>\
</noscript>
<script type="application/json" id="index">{index}</script>
{blocks}
<script>{script}</script></body></html>
"""


def write(report: Report, path: Path) -> None:
    """Raises OSError."""
    path.write_text(page(report), encoding="utf-8", errors="backslashreplace")


def page(report: Report) -> str:
    entries, blocks = entries_of(report)
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _FRAME.format(
        policy=escape(policy),
        title=escape(f"{report.title}: {headline(report)}"),
        style=style,
        index=_json(index_of(report, entries)),
        # In base64.
        blocks="\n".join(
            f'<script type="text/plain" class="block">{one}</script>' for one in blocks
        ),
        script=script,
    )


def _resource(name: str) -> str:
    """A `script` or `style`, in which HTML unescapes nothing. Raises ValueError for content that
    would end it."""
    content = (files(__package__) / name).read_text(encoding="utf-8")
    if "</" in content or "<!--" in content:
        raise ValueError(f"{name}: what ends it in a page")
    return content


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(value: object) -> str:
    """JSON that may stand in a script."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c")
