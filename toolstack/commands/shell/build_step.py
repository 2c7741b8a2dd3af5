"""The step of setuptools that makes the files for shells, and installs them as data files.

It is loaded from the sources, before anything of them is installed.
"""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command
from setuptools.command.build import build

_PACKAGES = Path(".packages")


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
