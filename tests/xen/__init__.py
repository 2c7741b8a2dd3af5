"""Runs the project on a real Xen, booted by QEMU's software emulation on any x86-64 machine.

    python -m tests.xen                               every scenario, and a table of how they went
    python -m tests.xen --list                        their names
    python -m tests.xen --suite trixie                those for Debian 13's Xen 4.20
    python -m tests.xen baseline xl-migrate-pvh       these
    python -m tests.xen --keep DIR xl-faults-save xl-faults-restore xl-faults-migrate
                                                      what xl makes of each fault of its helper:
                                                      printed, and in DIR/xl-faults.md and .json
    python -m tests.xen --keep DIR cross-release-back guests that go from 4.17 to 4.20 and back:
                                                      printed, and in DIR/cross-release.md and
                                                      .json
    python -m tests.xen --suite sid                   Debian's next release, whose QEMU takes no
                                                      saved state the way libxl passes it
    python -m pytest tests/xen                        every scenario as a test, except sid's

It needs root and the programs of Debian 12's packages qemu-system-x86, mmdebstrap, e2fsprogs,
busybox-static, cpio, zstd, gcc and libc6-dev; and to build a Xen with shadow paging, for PV guests
that migrate, make, bison, flex, libelf-dev and dpkg-dev. Its sources are Debian's package, or a
release's tree in the directory that XEN_SOURCES names (see `shadow_xen`). dom0 images, that Xen,
and each machine as it was when dom0 and some guests had booted are made once and kept in
`~/.cache/xen-save-helper/rig`. The package is the checkout's, built as a wheel and installed by pip
in each machine that is started, on Debian's own Python libraries.

To try something out: start a machine, run a script in dom0, and see its output as it comes:

    python -m tests.xen --script try.py [--suite trixie] [--limit 300] [--keep DIRECTORY]

The script is a Python program if its name ends in .py, else one for bash. It runs as root in /tmp
with Xen's programs in PATH, `xen-save-helper` and `xen-toolstack` installed, and the rig's own
library at hand:

    from pathlib import Path
    from tests.xen.dom0.lab import LIBXL, OURS, Lab
    lab = Lab(Path("/host/results/1"))      # what is written here comes back with --keep
    guest = lab.guest("pvh")                # counts on its console
    lab.save(guest, Path("/tmp/saved"), OURS)
    lab.restore(guest, Path("/tmp/saved"), LIBXL)
    lab.migrate(guest, sender=OURS, receiver=LIBXL, capture=Path("/host/results/1/stream"))

Each machine has a disk whose changes are discarded, and a shared directory; several run at once
(`--jobs`), as many as there are processors, with 6 GiB of memory each.

`scenarios` says how to add one. `dom0` runs inside, everything else outside: `kept_machine` boots,
`machine` talks to what was started from that, `runner` decides what starts when and what is run
again.
"""
