"""Where the files for shells are, below a prefix such as /usr or /usr/local; `{}` is a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

MANUAL: Final = "share/man/man1/{}.1"

COMPLETIONS: Final[Mapping[str, Sequence[str]]] = {
    "bash": ("share/bash-completion/completions/{}",),
    # Debian's zsh looks into the first below /usr/local, and into the second below /usr.
    "zsh": ("share/zsh/site-functions/_{}", "share/zsh/vendor-completions/_{}"),
    "fish": ("share/fish/vendor_completions.d/{}.fish",),
}
