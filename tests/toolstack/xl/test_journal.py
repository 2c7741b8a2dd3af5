"""The journal survives, allows one operation per guest, and tells the living from the dead."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.journal import (
    Journal,
    JournalError,
    ProcessIdentity,
    Promise,
    Role,
)


def begin(directory: Path, role: Role = Role.SOURCE, domid: int | None = 3) -> Journal:
    return Journal.begin(
        directory, "a/b guest", role, domid=domid, domain_name="a/b guest", peer="/there"
    )


@pytest.mark.parametrize("role", Role)
def test_each_promise_is_found_again(tmp_path: Path, role: Role) -> None:
    written = begin(tmp_path, role)
    for promise in journal.PROMISES[role]:
        written.promise(promise)
        assert journal.entries(tmp_path) == [written.entry]
        assert written.entry.promise is promise
    written.close()
    assert list(tmp_path.iterdir()) == []


def test_a_promise_of_another_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not promise"):
        begin(tmp_path).promise(Promise.GO_RECEIVED)


def test_a_promise_that_cannot_be_written_names_the_journal(tmp_path: Path) -> None:
    script = (
        "import sys, resource; from pathlib import Path\n"
        "from xen_save_helper.toolstack.xl.journal import Journal, Role\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "Journal.begin(Path(sys.argv[1]), 'g', Role.SOURCE, domid=1, domain_name='g', peer='x')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    last = ended.stderr.splitlines()[-1]
    assert "JournalError" in last
    assert "cannot write the journal: File too large" in last
    assert "g.source.journal" in last
    assert list(tmp_path.iterdir()) == []


def test_one_operation_a_guest(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(JournalError, match=f"in the middle.*process {os.getpid()}"):
        begin(tmp_path)
    with pytest.raises(JournalError, match="in the middle"):
        begin(tmp_path, Role.SAVE)


def test_one_begins_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two roles have two files: only the lock keeps both from beginning."""
    holder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        monkeypatch.setattr(journal, "_LOCK_LIMIT", 0.1)
        with pytest.raises(JournalError, match="another process has held"):
            begin(tmp_path)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(begin, tmp_path, Role.SAVE)
            with pytest.raises(TimeoutError):
                second.result(0.1)
            # What the holder of the lock begins, the second one sees.
            fcntl.flock(holder, fcntl.LOCK_UN)
            assert second.result(20).entry.role is Role.SAVE
    finally:
        os.close(holder)


def test_both_ends_on_one_host(tmp_path: Path) -> None:
    begin(tmp_path, Role.SOURCE)
    begin(tmp_path, Role.DESTINATION, domid=None)
    assert {entry.role for entry in journal.entries(tmp_path)} == {Role.SOURCE, Role.DESTINATION}


def test_a_dead_controller_is_told_from_a_live_one(tmp_path: Path) -> None:
    script = (
        "import sys, signal; from pathlib import Path\n"
        "from xen_save_helper.toolstack.xl.journal import Journal, Role\n"
        "Journal.begin(Path(sys.argv[1]), 'g', Role.SOURCE, domid=1, domain_name='g', peer='x')\n"
        "print('begun', flush=True); signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == b"begun\n"
        (entry,) = journal.entries(tmp_path)
        assert entry.process.pid == controller.pid
        assert entry.process.alive()
        controller.send_signal(signal.SIGKILL)
    assert not entry.process.alive()
    with pytest.raises(JournalError, match=r"recover g"):
        Journal.begin(tmp_path, "g", Role.SOURCE, domid=1, domain_name="g", peer="x")


def test_a_later_process_with_the_same_pid_is_another() -> None:
    me = ProcessIdentity.current()
    assert me.alive()
    assert not replace(me, start_time=me.start_time - 1).alive()
    assert not replace(me, boot_id="another boot").alive()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "x": 1}'])
def test_garbage_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "g.source.journal").write_text(text)
    with pytest.raises(JournalError, match=r"g\.source\.journal"):
        journal.entries(tmp_path)


def test_a_promise_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    held = begin(tmp_path / "state")
    (tmp_path / "state").rename(tmp_path / "away")
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(OSError, match="state"):
        held.promise(Promise.GO)


def test_no_directory_no_entries(tmp_path: Path) -> None:
    assert journal.entries(tmp_path / "none") == []


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left, held = tmp_path / f".journal-{gone.pid}-x", tmp_path / f".journal-{os.getpid()}-x"
    left.touch()
    held.touch()
    journal.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [held]
