"""The word of a process that does a helper's work, for the helper that has started it (`outlive`).

One that ends without a word has not done the work, whatever its status says: the domain would be
let run, and nobody would bring its last pages.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

GOES_ON: Final = b"\0"
"""The domain is restored, and this process stays as its pager."""
ENDS: Final = b"\1"
"""With the status that follows."""


def say(word: bytes, parent: int) -> None:
    """To the other end of the descriptor `parent`; one that went on has nobody there any more."""
    with suppress(BrokenPipeError):
        os.write(parent, word)
