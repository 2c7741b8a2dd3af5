"""Files that people mistake for a save file: what they are, and what to do."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.toolstack.aio import file_argument

LONGEST: Final = 512
"""Bytes from a file's start that are enough to recognise it."""

_ET_CORE: Final = 4


@dataclass(frozen=True)
class Foreign:
    """What a file is, and what to do with it; `unpacker` is the command that prints the contents
    of a compressed one."""

    what: str
    way: str = ""
    unpacker: str = ""


class NotAStreamError(DecodeError):
    """The file is not a stream, but `foreign`."""

    def __init__(self, foreign: Foreign) -> None:
        super().__init__("stream", 0, f"is {foreign.what}; {foreign.way or foreign.unpacker}")
        self.foreign = foreign

    def advice(self, file: Path | int, command: str) -> str:
        """Tell people who gave `file` to `command` what it is, and how to go on."""
        way = self.foreign.way
        if self.foreign.unpacker:
            before = "…" if isinstance(file, int) else f"{self.foreign.unpacker} {_quoted(file)}"
            between = f" | {self.foreign.unpacker}" if isinstance(file, int) else ""
            way = f"try `{before}{between} | xen-toolstack {command} -`"
        return f"{file_argument.name_of(file)} is {self.foreign.what}; {way}"


def _quoted(file: Path) -> str:
    return shlex.quote(f"./{file}" if str(file).startswith("-") else str(file))


LEGACY_XL: Final = Foreign(
    "a save file of Xen 4.5 or earlier",
    "`xl restore` of Xen 4.6 or later converts it; what it saves then can be read",
)
LEGACY_LIBVIRT: Final = Foreign(
    "a file of `virsh save` on Xen 4.5 or earlier",
    "`virsh restore` on Xen 4.6 or later converts it; what it saves then can be read",
)

_CORE: Final = Foreign(
    "a core dump (`xl dump-core`, `virsh dump`)",
    "it is for a debugger such as crash, and no guest can be restored from it",
)
_PROGRAM: Final = Foreign("an ELF program or kernel", "give a file of `xl save`")
_XENSERVER: Final = Foreign(
    "a suspend image of XenServer or XCP-ng",
    "only xapi can resume it: `xe vm-resume`",
)


def _compressed(name: str, unpacker: str) -> Foreign:
    return Foreign(f"compressed with {name}", unpacker=unpacker)


_BEGINNINGS: Final = {
    b"\x1f\x8b": _compressed("gzip", "zcat"),
    b"\xfd7zXZ\0": _compressed("xz", "xzcat"),
    b"\x28\xb5\x2f\xfd": _compressed("zstd", "zstdcat"),
    b"BZh": _compressed("bzip2", "bzcat"),
    b"\x04\x22\x4d\x18": _compressed("lz4", "lz4cat"),
    b"LZIP": _compressed("lzip", "lzip -dc"),
    b"\x89LZO\0\r\n\x1a\n": _compressed("lzop", "lzop -dc"),
    b"XenSavedDomv2-\n": _XENSERVER,
    b"XenSavedDomain\n": _XENSERVER,
    b"LinuxGuestRecord": Foreign(
        "a file of `xm save` (xend, Xen 4.4 or earlier)", "only xend can restore it"
    ),
    b"LibvirtQemudSave": Foreign(
        "a file of `virsh save` of a guest under QEMU, not Xen",
        "restore it there: `virsh -c qemu:///system restore FILE`",
    ),
    b"LibvirtQemudPart": Foreign(
        "an unfinished file of `virsh save` of a guest under QEMU, not Xen", "save it again"
    ),
    b"QEVM": Foreign(
        "a migration stream of QEMU itself: a device model's state, or a guest under KVM",
        "QEMU reads it: `-incoming`",
    ),
    b"DeviceModelRecord0002": Foreign(
        "the state of a device model alone", "give the file of `xl save` that it belongs to"
    ),
    b"QemuDeviceModelRecord": Foreign(
        "the state of a device model alone", "give the file of `xl save` that it belongs to"
    ),
    b"QFI\xfb": Foreign("a disk image (qcow2)", "give a file of `xl save`"),
    b"\x7fELF": _PROGRAM,
}


def foreign(start: bytes) -> Foreign | None:
    """Recognise a file by its `start` (LONGEST bytes, or all of it); None if it is unknown."""
    if start[257:262] == b"ustar":
        return Foreign("a tar archive", "one of `xe vm-export` (.xva) is for `xe vm-import`")
    for beginning, found in _BEGINNINGS.items():
        if start.startswith(beginning):
            return _CORE if found is _PROGRAM and _is_core(start) else found
    return None


def _is_core(start: bytes) -> bool:
    return int.from_bytes(start[16:18], "big" if start[5:6] == b"\x02" else "little") == _ET_CORE
