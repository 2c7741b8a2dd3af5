"""Which record may come when in the stream of an HVM guest: the whole grammar of a restore.

This is the libxc stream specification, its gaps filled in from libxc's own sender, and the postcopy
series' records; in version 3, lists of pages may come before the guest is suspended, too. A version
2 stream has no STATIC_DATA_END: its first record that is not static data implies it.
"""

from __future__ import annotations

from collections.abc import Mapping

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.phases import Stage

_R, _S = RecordType, Stage


def _stay(stage: Stage, *records: RecordType) -> dict[tuple[Stage, RecordType], Stage]:
    return {(stage, record): stage for record in records}


_STATE = (_R.X86_TSC_INFO, _R.HVM_CONTEXT, _R.HVM_PARAMS)

NEXT: Final[Mapping[tuple[Stage, RecordType], Stage]] = {
    **_stay(_S.STATIC_DATA, _R.SPARSE, _R.POSTCOPY_OFFER, _R.X86_CPUID_POLICY, _R.X86_MSR_POLICY),
    (_S.STATIC_DATA, _R.STATIC_DATA_END): _S.MEMORY,
    **_stay(_S.MEMORY, _R.PAGE_DATA, *_STATE),
    (_S.MEMORY, _R.VERIFY): _S.VERIFY,
    (_S.MEMORY, _R.POSTCOPY_PFNS_BEGIN): _S.POSTCOPY_PFNS_AHEAD,
    (_S.MEMORY, _R.POSTCOPY_BEGIN): _S.POSTCOPY_STATE,
    (_S.MEMORY, _R.END): _S.ENDED,
    **_stay(_S.VERIFY, _R.PAGE_DATA, *_STATE),
    (_S.VERIFY, _R.END): _S.ENDED,
    **_stay(_S.POSTCOPY_PFNS_AHEAD, _R.POSTCOPY_PFNS, _R.PAGE_DATA),
    (_S.POSTCOPY_PFNS_AHEAD, _R.POSTCOPY_BEGIN): _S.POSTCOPY_STATE,
    **_stay(_S.POSTCOPY_STATE, *_STATE),
    (_S.POSTCOPY_STATE, _R.POSTCOPY_PFNS_BEGIN): _S.POSTCOPY_PFNS,
    **_stay(_S.POSTCOPY_PFNS, _R.POSTCOPY_PFNS),
    (_S.POSTCOPY_PFNS, _R.POSTCOPY_TRANSITION): _S.POSTCOPY_PAGES,
    **_stay(_S.POSTCOPY_PAGES, _R.POSTCOPY_PAGE_DATA),
    (_S.POSTCOPY_PAGES, _R.END): _S.ENDED,
}

POSTCOPY_RECORDS: Final = frozenset(
    {
        _R.POSTCOPY_BEGIN,
        _R.POSTCOPY_PFNS_BEGIN,
        _R.POSTCOPY_PFNS,
        _R.POSTCOPY_TRANSITION,
        _R.POSTCOPY_PAGE_DATA,
    }
)

_STATIC_ONLY: Final = frozenset(
    {_R.SPARSE, _R.POSTCOPY_OFFER, _R.X86_CPUID_POLICY, _R.X86_MSR_POLICY, _R.STATIC_DATA_END}
)


class RecordOrder:
    """Walks the table. `version` is the stream's."""

    def __init__(self, version: int) -> None:
        self.stage = Stage.STATIC_DATA
        self._version = version

    def record(self, kind: RecordType, offset: int) -> bool:
        """Take the record `kind` at `offset`; returns whether it implies that the static data is
        complete. Raises DecodeError if it may not come now."""
        stage = self.stage
        implied = self._version < 3 and stage is Stage.STATIC_DATA and kind not in _STATIC_ONLY
        if implied:
            stage = Stage.MEMORY
        following = NEXT.get((stage, kind))
        if following is None or (following is Stage.POSTCOPY_PFNS_AHEAD and self._version < 3):
            raise DecodeError(kind.name, offset, f"may not come here, in the {stage.value}")
        self.stage = following
        return implied
