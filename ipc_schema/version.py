"""The version of the installed distribution."""

from __future__ import annotations

from xen_save_helper.ipc_schema.hints import Final

DISTRIBUTION: Final = "xen-save-helper"


def version() -> str:
    """Return the installed version, or "not installed" if the files are used without one."""
    # Imported late: it would slow down every helper's start.
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(DISTRIBUTION)
    except PackageNotFoundError:
        return "not installed"
