"""How we use `xl`, which is a script here."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from xen_save_helper.toolstack.hosts.xen import xl

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def xl_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(script: str) -> None:
        program = tmp_path / "xl"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return make


def test_the_stored_configuration_without_this_hosts_domid(
    xl_is: Callable[[str], None],
) -> None:
    xl_is("""[ "$*" = "list -l 7" ] || exit 9
echo '[{"domid": 7, "config": {"c_info": {"name": "g", "domid": 4294967295}, "b_info": {}}}]'""")
    assert xl.domain_config(7) == {"c_info": {"name": "g"}, "b_info": {}}


@pytest.mark.parametrize("answer", ["", "[]", "no JSON", '[{"domid": 7}]', '{"domid": 7}', "[1]"])
def test_an_answer_that_is_not_a_configuration_is_an_error(
    xl_is: Callable[[str], None], answer: str
) -> None:
    xl_is(f"echo '{answer}'")
    with pytest.raises(OSError, match="gives no configuration") as caught:
        xl.domain_config(7)
    assert caught.value.errno == errno.EPROTO


def test_its_complaint_is_the_errors_text(xl_is: Callable[[str], None]) -> None:
    xl_is("""echo 'libxl: error: libxl_domain.c:114:libxl__domain_rename: Domain 3:taken' >&2
echo "Can't rename domain 'a'." >&2
exit 1""")
    with pytest.raises(OSError, match=r"^\[Errno 5\] xl rename 3 b: Domain 3:taken$"):
        xl.run("rename", "3", "b")


def test_one_that_does_not_end_is_killed(xl_is: Callable[[str], None]) -> None:
    xl_is("exec sleep 100")
    with pytest.raises(TimeoutError, match=r"xl destroy 3 has not ended in 0.3 s"):
        xl.run("destroy", "3", timeout=0.3)


@pytest.mark.usefixtures("xl_is")
def test_without_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xl, "_ADMINISTRATORS", ())
    with pytest.raises(FileNotFoundError, match="xen-utils-common"):
        xl.run("list")
