"""The step of setuptools that makes the files for shells, and installs them as data files.

It is loaded from the sources, before anything of them is installed.
"""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command
from setuptools.command.build import build
from setuptools.errors import SetupError

_PACKAGES = Path(".packages")


def _check_tools() -> None:
    """Raise SetupError for what this build lacks: pip does not look, unless it gets all itself."""
    lacks = []
    for requirement in tomllib.loads(Path("pyproject.toml").read_text())["build-system"][
        "requires"
    ]:
        name, _, least = requirement.partition(">=")
        try:
            here = version(name)
        except PackageNotFoundError:
            lacks.append(f"{requirement} (there is none)")
            continue
        if _figures(here) < _figures(least):
            lacks.append(f"{requirement} (this is {here})")
    if lacks:
        raise SetupError(
            f"completion scripts and man pages are made with {', '.join(lacks)}: "
            "pip gets them by itself, without --no-build-isolation"
        )


def _figures(text: str) -> list[int]:
    return [int(figure) for figure in re.findall(r"\d+", text)]


class BuildShellFiles(Command):
    """Makes completion scripts and man pages."""

    description = "make completion scripts and man pages"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_base: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_base", "build_base"))

    def run(self) -> None:
        assert self.build_base is not None
        _check_tools()
        directory = Path(self.build_base, "shell")
        shutil.rmtree(directory, ignore_errors=True)
        sys.path.insert(0, str(_PACKAGES.absolute()))
        try:
            from xen_save_helper.toolstack.commands.shell.generate import generate

            made = generate(directory, self.distribution.get_version())
        finally:
            sys.path.pop(0)
        by_place = defaultdict(list)
        for path in made:
            by_place[str(path.parent)].append(str(directory / path))
        self.distribution.data_files = [
            *(self.distribution.data_files or ()),
            *sorted(by_place.items()),
        ]
        if self.editable_mode:
            # Only a whole installation does that by itself.
            self.run_command("install_data")

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    """setuptools' `build`, with the files for shells."""

    sub_commands: ClassVar[list[tuple[str, Any]]] = [
        *build.sub_commands,
        ("build_shell_files", None),
    ]
