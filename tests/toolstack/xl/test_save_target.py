"""The target of a save is checked beforehand; a replaced file keeps its mode, owner, attributes."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.toolstack.stage import TOOLSTACK, Ended, Hosts, called
from tests.unavailable import unavailable

IN_ITS_OWN_MOUNTS = ["unshare", "--mount"]
UNPRIVILEGED = ["--bounding-set", "-dac_override,-dac_read_search,-fowner,-chown"]


def in_mounts(hosts: Hosts, mounts: str, *arguments: object) -> Ended:
    """A save after the shell commands `mounts`, which this process does not see."""
    if subprocess.run([*IN_ITS_OWN_MOUNTS, "true"], check=False, capture_output=True).returncode:
        unavailable(
            "no unprivileged user namespaces here (sysctl kernel.unprivileged_userns_clone)"
        )
    command = [*TOOLSTACK, "save", *map(str, arguments), "--host", str(hosts.source)]
    done = subprocess.run(
        [*IN_ITS_OWN_MOUNTS, "sh", "-ec", f'{mounts}; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def without_privileges(*command: str) -> list[str]:
    """A command to which permissions apply though it may be root's."""
    return ["setpriv", *UNPRIVILEGED, "--", *command] if os.geteuid() == 0 else [*command]


def refused(hosts: Hosts, ended: Ended, *words: str, events: Path | None = None) -> None:
    assert ended.code == 1
    for word in words:
        assert word in ended.line
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.journals() == []
    if events is not None:
        assert "suspend" not in events.read_text()


def test_a_mount_point(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    mounted, place = tmp_path / "mounted", tmp_path / "m.sav"
    place.touch()
    mounted.touch()
    mounts = f"mount --bind '{mounted}' '{place}'"
    events = tmp_path / "events"
    ended = in_mounts(hosts, mounts, "g", place, "--events", events)
    refused(hosts, ended, str(place), "mount point", f"`save NAME - >{place}`", events=events)
    assert (mounted.read_bytes(), place.read_bytes()) == (b"", b"")

    assert in_mounts(hosts, f"{mounts}; exec >'{place}'", "g", "-").code == 0
    assert called("restore", mounted, "--host", hosts.destination).code == 0


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (".", ["it is a directory; name a file in it"]),
        ("new/", ["name a file: ", "new/"]),
        ("", ["FILE is empty; `-` is stdout"]),
        ("no/m.sav", ["there is no directory ", "/no; make it first"]),
        ("file/m.sav", ["Not a directory"]),
    ],
)
def test_what_is_no_place_for_a_file(
    unharmed: Hosts, tmp_path: Path, where: str, words: list[str]
) -> None:
    (tmp_path / "file").touch()
    before = set(tmp_path.rglob("*"))
    events = tmp_path / "events"
    with contextlib.chdir(tmp_path):
        ended = called("save", "g", where, "--host", unharmed.source, "--events", events)
    refused(unharmed, ended, *words)
    assert set(tmp_path.rglob("*")) - before <= {events}


def test_a_read_only_filesystem(unharmed: Hosts, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    mounts = f"mount --bind '{place}' '{place}'; mount -o remount,ro,bind '{place}'"
    ended = in_mounts(unharmed, mounts, "g", place / "m.sav")
    refused(
        unharmed, ended, f"{place} is on a filesystem that is mounted read-only; save elsewhere"
    )


def test_a_filesystem_that_makes_no_files(unharmed: Hosts) -> None:
    """Its directory's mode says that they can be made."""
    ended = called("save", "g", "/sys/m.sav", "--host", unharmed.source)
    assert (ended.code, unharmed.journals()) == (1, [])
    assert "cannot save 'g' to /sys/m.sav: " in ended.line
    assert "/sys" in ended.line.split("/sys/m.sav")[1]
    assert ".partial" not in ended.line


def test_a_socket(unharmed: Hosts, tmp_path: Path) -> None:
    name = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        saved = called("save", "g", name, "--host", unharmed.source)
        restored = called("restore", name, "--host", unharmed.destination)
    refused(unharmed, saved, f"{name}: it is a socket; pipe the save into a program that connects")
    assert restored.code == 1
    assert f"cannot read {name}: it is a socket; " in restored.line


@pytest.mark.parametrize("forbidden", ["the directory", "the file"])
def test_a_place_that_cannot_be_written(unharmed: Hosts, tmp_path: Path, forbidden: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    file = place / "m.sav"
    file.write_text("before")
    (place if forbidden == "the directory" else file).chmod(0o555)
    done = subprocess.run(
        without_privileges(*TOOLSTACK, "save", "g", str(file), "--host", str(unharmed.source)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    place.chmod(0o755)
    word = f"cannot make files in {place}" if forbidden == "the directory" else "cannot write it"
    refused(unharmed, Ended(done.returncode, done.stdout, done.stderr), str(file), word)
    assert os.listdir(place) == ["m.sav"]
    assert file.read_text() == "before"


def test_a_file_that_only_another_user_may_replace() -> None:
    if os.geteuid() != 0:
        unavailable("only root makes files of other users")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o1777)
        file = directory / "m.sav"
        file.touch()
        file.chmod(0o666)
        text = (
            f"from pathlib import Path\n"
            f"from xen_save_helper.toolstack.xl.save_target import save_target\n"
            f"save_target(Path({str(file)!r}))"
        )
        user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
        done = subprocess.run(
            [*user, sys.executable, "-c", text], capture_output=True, text=True, check=False
        )
        assert "only user 0 may replace it" in done.stderr
        assert "sticky bit" in done.stderr


def test_a_file_that_can_only_be_appended_to(unharmed: Hosts, tmp_path: Path) -> None:
    file = tmp_path / "m.sav"
    file.write_text("before")
    if subprocess.run(["chattr", "+a", file], check=False, capture_output=True).returncode:
        unavailable("chattr +a needs root and a filesystem that has it")
    try:
        ended = called("save", "g", file, "--host", unharmed.source)
    finally:
        subprocess.run(["chattr", "-a", file], check=True)
    refused(unharmed, ended, str(file), "append-only; `chattr -a` ends that")
    assert file.read_text() == "before"


@pytest.mark.parametrize("onto", ["a file", "a descriptor"])
def test_a_disk_without_room(hosts: Hosts, tmp_path: Path, onto: str) -> None:
    hosts.guest(megabytes=8)
    place = tmp_path / "place"
    place.mkdir()
    mounts = f"mount -t tmpfs -o size=6m none '{place}'; cd '{place}'"
    if onto == "a descriptor":
        mounts += "; exec >m.sav"
    events = tmp_path / "events"
    name = "m.sav" if onto == "a file" else "-"
    ended = in_mounts(hosts, mounts, "g", name, "--events", events)
    refused(
        hosts, ended, "No space left on device: the guest needs up to 9.", "and its filesystem "
        "has 6.0 MiB; make room", events=events,
    )  # fmt: skip


def test_a_disk_that_has_just_room(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    place = tmp_path / "place"
    place.mkdir()
    ended = in_mounts(
        hosts, f"mount -t tmpfs -o size=4m none '{place}'", "g", place / "m.sav", "-c"
    )
    assert ended.code == 0, ended


def test_what_was_reserved_and_not_used_is_given_back(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    file = tmp_path / "m.sav"
    assert called("save", "-c", "g", file, "--host", hosts.source).code == 0
    status = file.stat()
    assert status.st_blocks * 512 < status.st_size + (64 << 10)


def test_a_replaced_file_keeps_mode_owner_and_attributes(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    file, link, other = tmp_path / "file", tmp_path / "link", tmp_path / "other"
    file.write_text("before")
    os.link(file, other)
    link.symlink_to("file")
    file.chmod(0o2640)
    if root := os.geteuid() == 0:
        os.chown(file, 1234, 5678)
        file.chmod(0o2640)
    attributes = {}
    with contextlib.suppress(OSError):  # not every filesystem has them
        os.setxattr(file, "user.note", b"nightly")
        attributes["user.note"] = b"nightly"
    assert called("save", "g", link, "--host", hosts.source).code == 0
    status = file.stat()
    assert stat.S_IMODE(status.st_mode) == 0o2640
    if root:
        assert (status.st_uid, status.st_gid) == (1234, 5678)
    assert {name: os.getxattr(file, name) for name in attributes} == attributes
    assert os.readlink(link) == "file"
    assert other.read_text() == "before"
    assert called("restore", link, "--host", hosts.destination).code == 0


def test_an_owner_that_a_new_file_cannot_have(unharmed: Hosts, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        unavailable("only root makes files of other users")
    file = tmp_path / "m.sav"
    file.write_text("before")
    file.chmod(0o666)
    os.chown(file, 1234, 5678)
    done = subprocess.run(
        without_privileges(*TOOLSTACK, "save", "g", str(file), "--host", str(unharmed.source)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused(
        unharmed,
        Ended(done.returncode, done.stdout, done.stderr),
        "the new file cannot have the owner (1234:5678)",
        "remove that first, or save to another name",
    )
    assert file.read_text() == "before"
    assert list(tmp_path.glob(".*partial")) == []


def test_a_new_file_is_for_its_owner_alone(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=2)
    file = tmp_path / ("long" * 63)
    assert called("save", "g", file, "--host", hosts.source).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_filesystem_within_dev(hosts: Hosts) -> None:
    hosts.guest(megabytes=2)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        file = Path(directory) / "m.sav"
        assert called("save", "g", file, "--host", hosts.source).code == 0
        assert file.stat().st_size > 2 << 20


def test_no_file_is_made_among_the_devices(unharmed: Hosts) -> None:
    ended = called("save", "g", "/dev/no-such-disk", "--host", unharmed.source)
    refused(unharmed, ended, "/dev/no-such-disk: it does not exist, and /dev is not for new files")
    assert not Path("/dev/no-such-disk").exists()
