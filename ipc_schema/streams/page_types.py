"""XEN_DOMCTL_PFINFO_*: the types of a guest's pages in the page lists of a stream."""

from __future__ import annotations

from enum import IntEnum

from xen_save_helper.ipc_schema.hints import Final

TYPE_SHIFT: Final = 28
"""XEN_DOMCTL_PFINFO_LTAB_SHIFT: a type is the top four bits of a u32."""
LPINTAB: Final = 0x8 << TYPE_SHIFT
"""XEN_DOMCTL_PFINFO_LPINTAB: the bit that marks a page table as pinned."""


class PageType(IntEnum):
    """All page types that a stream may have, as u32 values."""

    NOTAB = 0x0 << TYPE_SHIFT
    L1TAB = 0x1 << TYPE_SHIFT
    L2TAB = 0x2 << TYPE_SHIFT
    L3TAB = 0x3 << TYPE_SHIFT
    L4TAB = 0x4 << TYPE_SHIFT
    L1TAB_PIN = L1TAB | LPINTAB
    L2TAB_PIN = L2TAB | LPINTAB
    L3TAB_PIN = L3TAB | LPINTAB
    L4TAB_PIN = L4TAB | LPINTAB
    BROKEN = 0xD << TYPE_SHIFT
    XALLOC = 0xE << TYPE_SHIFT
    """Allocate only: the page exists, its contents do not matter."""
    XTAB = 0xF << TYPE_SHIFT
    """Invalid: the page does not exist, or no longer."""


FIRST_WITHOUT_CONTENTS: Final = PageType.BROKEN
"""This type and those above it have no contents in a stream; all below it do."""

_OCTET_SHIFT: Final = TYPE_SHIFT - 4


def type_octet(page_type: int) -> int:
    """The top octet of a type: that of its entry in a page list too. Many pages' types are
    `bytes`, an octet each."""
    return page_type >> _OCTET_SHIFT


def type_of_octet(octet: int) -> PageType:
    """The type with this top octet. Raises ValueError if there is none."""
    return PageType(octet << _OCTET_SHIFT)


def has_contents(page_type: int) -> bool:
    """Whether pages of this (legal) type have contents in a stream (page_type_has_stream_data)."""
    return page_type < FIRST_WITHOUT_CONTENTS
