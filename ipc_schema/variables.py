"""Variables of the environment by which whoever starts a helper reaches it, and those it starts."""

from __future__ import annotations

from xen_save_helper.ipc_schema.hints import Final

EVENTS: Final = "XEN_SAVE_HELPER_EVENTS"
"""The file of the trace."""
FAULTS: Final = "XEN_SAVE_HELPER_FAULTS"
"""The plan of the faults to inject; a command's controller has a part in it, too."""
