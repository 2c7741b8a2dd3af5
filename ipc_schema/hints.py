"""The names of `typing` that annotations use, for modules that every helper loads at its start.

`typing` takes longer to load than any other module, and loads `re` besides, for nothing: with
`from __future__ import annotations` nobody evaluates an annotation.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any, Final, NoReturn, Protocol, Self, TextIO
else:
    Any = object

    class Protocol:
        """A base that has nothing."""

    class _Unevaluated:
        """Stands for a name that is in annotations alone."""

    Final = NoReturn = Self = TextIO = _Unevaluated

__all__ = ["TYPE_CHECKING", "Any", "Final", "NoReturn", "Protocol", "Self", "TextIO"]
