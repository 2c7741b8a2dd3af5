"""HTML that cannot be broken by what is in it: all that is not markup is escaped."""

from __future__ import annotations

from html import escape
from typing import Final


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


_VOID: Final = frozenset({"meta", "input", "br", "col"})


def tag(name: str, /, *children: str, **attributes: str | bool | None) -> Markup:
    """An element. Attributes that are None or False are left out, True stands alone; `_` in a name
    is `-`, and a last one goes (`class_`)."""
    given = []
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            given.append(f" {attribute}")
        elif value is not None and value is not False:
            given.append(f' {attribute}="{escape(value)}"')
    start = f"<{name}{''.join(given)}>"
    if name in _VOID:
        assert not children
        return Markup(start)
    return Markup(f"{start}{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def raw(name: str, content: str, /, **attributes: str) -> Markup:
    """A `script` or `style`, whose content HTML does not unescape. Raises ValueError for content
    that would end it."""
    if "</" in content or "<!--" in content:
        raise ValueError(f"what ends a {name}: {content[:80]!r}")
    opened = tag(name, **attributes)
    return Markup(opened.replace(f"</{name}>", f"{content}</{name}>"))
