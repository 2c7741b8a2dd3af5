"""Files that are mistaken for save files: what they are, and what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile

import pytest

from xen_save_helper.ipc_schema.streams import libvirt_header, xl_header
from xen_save_helper.toolstack.inspect.foreign_formats import NotAStreamError
from xen_save_helper.toolstack.inspect.walk import inspect


def elf(kind: int, order: str = "<") -> bytes:
    head = b"\x7fELF" + bytes([2, 1 if order == "<" else 2, 1]) + bytes(9)
    return head + struct.pack(f"{order}HHI", kind, 62, 1) + bytes(200)


def legacy_xl() -> bytes:
    header = bytearray(xl_header.encode_header(b'{"c_info": {"name": "g", "type": "pv"}}'))
    header[36] = xl_header.MANDATORY_JSON
    return bytes(header) + struct.pack("<Q", 0x8000) + bytes(200)


def archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("ova.xml"))
    return data.getvalue()


def unpack(tool: str) -> str:
    return f"try `{tool} {{file}} | xen-toolstack {{command}} -`"


XML = b"<domain type='xen'><name>g</name></domain>\0"
SUPPOSED = b"what is in it" * 9
FOREIGN = {
    "gzip": (gzip.compress(SUPPOSED), "compressed with gzip", unpack("zcat")),
    "xz": (lzma.compress(SUPPOSED), "compressed with xz", unpack("xzcat")),
    "bzip2": (bz2.compress(SUPPOSED), "compressed with bzip2", unpack("bzcat")),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(60), "compressed with zstd", unpack("zstdcat")),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(60), "compressed with lz4", unpack("lz4cat")),
    "XenServer": (
        b"XenSavedDomv2-\n" + struct.pack("<QQ", 0xF, 400) + bytes(400),
        "a suspend image of XenServer or XCP-ng",
        "only xapi can resume it: `xe vm-resume`",
    ),
    "xva": (
        archive(),
        "a tar archive",
        "one of `xe vm-export` (.xva) is for `xe vm-import`",
    ),
    "xend": (
        b"LinuxGuestRecord" + bytes(60),
        "a file of `xm save` (xend, Xen 4.4 or earlier)",
        "only xend can restore it",
    ),
    "Xen 4.5": (
        legacy_xl(),
        "a save file of Xen 4.5 or earlier",
        "`xl restore` of Xen 4.6 or later converts it; what it saves then can be read",
    ),
    "virsh on Xen 4.5": (
        libvirt_header.encode(XML, 1) + bytes(60),
        "a file of `virsh save` on Xen 4.5 or earlier",
        "`virsh restore` on Xen 4.6 or later converts it; what it saves then can be read",
    ),
    "core": (
        elf(4),
        "a core dump (`xl dump-core`, `virsh dump`)",
        "it is for a debugger such as crash, and no guest can be restored from it",
    ),
    "big-endian core": (
        elf(4, ">"),
        "a core dump (`xl dump-core`, `virsh dump`)",
        "it is for a debugger such as crash, and no guest can be restored from it",
    ),
    "kernel": (elf(2), "an ELF program or kernel", "give a file of `xl save`"),
    "virsh on QEMU": (
        b"LibvirtQemudSave" + bytes(76),
        "a file of `virsh save` of a guest under QEMU, not Xen",
        "restore it there: `virsh -c qemu:///system restore FILE`",
    ),
    "QEMU": (
        b"QEVM\0\0\0\3" + bytes(60),
        "a migration stream of QEMU itself: a device model's state, or a guest under KVM",
        "QEMU reads it: `-incoming`",
    ),
    "disk": (b"QFI\xfb\0\0\0\3" + bytes(60), "a disk image (qcow2)", "give a file of `xl save`"),
}
"""Data, what it is, and the way out, in which `{file}` and `{command}` are to be put."""


@pytest.mark.parametrize("name", FOREIGN)
def test_the_error_says_what_a_file_is(name: str) -> None:
    data, what, _ = FOREIGN[name]
    with pytest.raises(NotAStreamError) as seen:
        list(inspect(io.BytesIO(data)))
    assert seen.value.foreign.what == what


@pytest.mark.parametrize("size", range(20))
def test_short_files_do_no_harm(size: int) -> None:
    for data, _, _ in FOREIGN.values():
        with pytest.raises(ValueError, match=r"stream|header"):
            list(inspect(io.BytesIO(data[:size])))
