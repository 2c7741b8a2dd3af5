"""HTML pages that need nothing else: no network, no other file, and no script but their own."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from typing import Final

_FRAME: Final = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">\
<meta http-equiv="Content-Security-Policy" content="{policy}">\
<meta name="viewport" content="width=device-width, initial-scale=1">\
<meta name="color-scheme" content="light dark">\
<title>{title}</title><style>{style}</style></head>
<body>{body}
<script>{script}</script></body></html>
"""


def page(package: str, name: str, title: str, body: str) -> str:
    """A page with `body`, which is HTML, and the `NAME.css` and `NAME.js` of `package`. `title` is
    text. Raises ValueError for a style or script that would end early."""
    style, script = _resource(package, f"{name}.css"), _resource(package, f"{name}.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return _FRAME.format(
        policy=escape(policy), title=escape(title), style=style, body=body, script=script
    )


def _resource(package: str, name: str) -> str:
    """A `script` or `style`, in which HTML unescapes nothing."""
    content = (files(package) / name).read_text(encoding="utf-8")
    if "</" in content or "<!--" in content:
        raise ValueError(f"{name}: what ends it in a page")
    return content


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
