"""Which version of the whole this is."""

from __future__ import annotations

from typing import Final

DISTRIBUTION: Final = "xen-save-helper"


def version() -> str:
    """That of the installed package; "not installed" where its files are used without."""
    # Not at the top: no start of a helper has to pay for it.
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"
