"""The wheel's completion scripts and man pages, in the shells and the man that read them."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import HostFactory
from tests.once import once
from tests.unavailable import unavailable
from tests.xen.wheel import wheel
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
STRANGE = "a b$(touch evil)"
"""A guest's name that a shell must not read."""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix, as /usr/local, with the wheel installed."""

    def install(directory: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--ignore-installed",
            "--prefix",
        ]
        subprocess.run([*command, str(directory), str(wheel())], check=True, timeout=120)

    return once(tmp_path_factory, "prefix", install)


@pytest.fixture
def environment(prefix: Path, tmp_path: Path) -> dict[str, str]:
    (site,) = prefix.glob("lib*/python*/site-packages")
    return {
        "PATH": f"{prefix / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(site),
        "XDG_DATA_DIRS": f"{prefix / 'share'}:/usr/share",
        "HOME": str(tmp_path),
        "TERM": "vt100",
        "LANG": "C.UTF-8",
    }


@pytest.fixture
def hosts(host_factory: HostFactory) -> tuple[SimulatedHost, SimulatedHost]:
    here, there = host_factory("here"), host_factory("there")
    here.create_guest("web", 1 << 20, "idle")
    here.create_guest(STRANGE, 1 << 20, "idle")
    there.create_guest("mail", 1 << 20, "idle")
    return here, there


def needed(program: str, package: str) -> None:
    if shutil.which(program) is None:
        unavailable(f"no {program}: apt-get install {package}")


Complete = Callable[..., list[str]]
"""The candidates for the last word of a command line, which `directory` is the one to type it in,
with more environment."""


def in_bash(line: str, environment: dict[str, str], directory: Path, **more: str) -> list[str]:
    """As a person with bash-completion has it, which finds the script by the command's name."""
    if not BASH_COMPLETION.exists():
        unavailable("no bash-completion: apt-get install bash-completion")
    script = (
        f"""
        source {BASH_COMPLETION}
        _completion_loader xen-toolstack
        words=({line.replace("=", " = ")}"""
        + (" ''" if line.endswith(" ") else "")
        + """)
        COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
        COMP_LINE="$1" COMP_POINT=${#1}
        registered=($(complete -p xen-toolstack))
        "${registered[-2]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    )
    command = ["bash", "--norc", "-c", script, "bash", line]
    return said(command, {**environment, **more}, directory)


def in_fish(line: str, environment: dict[str, str], directory: Path, **more: str) -> list[str]:
    needed("fish", "fish")
    command = ["fish", "--no-config", "-c", "complete -C $argv[1]", line]
    command[1:2] = []
    found = said(command, {**environment, **more}, directory)
    return [candidate.partition("\t")[0] for candidate in found]


def in_zsh(line: str, environment: dict[str, str], directory: Path, **more: str) -> list[str]:
    """All candidates are inserted where a person would see a list."""
    needed("zsh", "zsh")
    functions = environment["XDG_DATA_DIRS"].partition(":")[0] + "/zsh/site-functions"
    setup = f"""
        PROMPT= RPS1= ; unsetopt zle_bracketed_paste prompt_sp beep; fpath=({functions} $fpath)
        autoload -Uz compinit; compinit -u -D
        accept() {{ print -r -- $'\\n'"<$BUFFER>"; BUFFER=; zle .accept-line }}
        zle -N accept; zle -C every menu-expand-or-complete all
        all() {{ _main_complete; compstate[insert]=all }}
        bindkey '^T' every; bindkey '^O' accept; print re''ady
    """
    (directory / ".zshrc").write_text(setup)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.execvpe("zsh", ["zsh", "-i"], {**environment, **more, "ZDOTDIR": str(directory)})
    try:
        until(terminal, "ready")
        os.write(terminal, f"{line}\x14\x0f".encode())
        shown = until(terminal, ">\r\n").rpartition("<")[2].partition(">")[0]
    finally:
        os.write(terminal, b"\x15exit\n")
        os.close(terminal)
        os.waitpid(pid, 0)
    return shown.removeprefix(line.rpartition(" ")[0]).split()


def until(terminal: int, text: str) -> str:
    shown = ""
    while text not in shown:
        shown += os.read(terminal, 4096).decode()
    return shown


def said(command: list[str], environment: dict[str, str], directory: Path) -> list[str]:
    done = subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("complete", [in_bash, in_zsh, in_fish], ids=["bash", "zsh", "fish"])
def test_what_is_completed(
    complete: Complete,
    environment: dict[str, str],
    hosts: tuple[SimulatedHost, SimulatedHost],
    tmp_path: Path,
) -> None:
    here, there = hosts
    directory = tmp_path / "typed"
    directory.mkdir()
    (directory / "image").touch()
    (directory / "folder").mkdir()

    def told(line: str, **more: str) -> list[str]:
        return complete(f"xen-toolstack {line}", environment, directory, **more)

    at = {"XEN_TOOLSTACK_HOST": str(here.directory)}
    assert told("mig") == ["migrate"]
    assert told("faults camp") == ["campaign"]
    assert told("migrate w", **at) == ["web"]
    assert told(f"pause --host {there.directory} m", **at) == ["mail"]
    assert told(f"pause --host={there.directory} m", **at) == ["mail"]
    assert any("evil" in name for name in told("pause ", **at))
    assert not (directory / "evil").exists()
    assert told("inspect im") == ["image"]
    assert told("list --host fo")[0].rstrip("/") == "folder"
    assert told("demo --mode post") == ["postcopy"]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("program", ["xen-toolstack", "xen-save-helper"])
def test_the_man_pages(program: str, width: int, prefix: Path, environment: dict[str, str]) -> None:
    needed("man", "man-db")
    page = prefix / "share" / "man" / "man1" / f"{program}.1"
    environment["MANWIDTH"] = str(width)
    shown = "\n".join(said(["man", "--warnings", "-l", str(page)], environment, prefix))
    assert f"{program} - " in shown
    assert "EXIT STATUS" in shown
    assert said(["groff", "-man", "-ww", "-z", str(page)], environment, prefix) == []
    found = subprocess.run(
        ["man", "-w", program],
        env={**environment, "MANPATH": ":"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(page)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("program", ["xen-toolstack", "xen-save-helper"])
def test_a_script_can_be_had_where_no_shell_looks(
    shell: str, program: str, environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["xen-toolstack", "completion", shell, "--of", program]
    assert program in "\n".join(said(command, environment, tmp_path))
