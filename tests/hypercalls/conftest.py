from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.debian_packages import PackageUnavailableError
from tests.hypercalls.build import RELEASES, Release, built, release_in
from tests.hypercalls.machine import Domain, Machine
from tests.hypercalls.xenstored import Guest, Xenstored
from tests.once import once
from tests.unavailable import unavailable

Releases = Callable[[str], Release]


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """The stand-in with one version of Debian's libraries."""
    made: dict[str, Release] = {}

    def release(version: str) -> Release:
        if version not in made:
            try:
                name = f"hypercalls-{version}"
                directory = once(tmp_path_factory, name, lambda new: built(new, version))
                made[version] = release_in(directory, version)
            except PackageUnavailableError as error:
                unavailable(str(error))
        return made[version]

    return release


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, releases: Releases) -> Release:
    return releases(request.param)


@pytest.fixture
def machine(tmp_path: Path, release: Release) -> Iterator[Machine]:
    """A machine on which nothing may be left behind, and nothing unknown be called."""
    directory = tmp_path / "machine"
    directory.mkdir()
    made = Machine(directory, release.version, library=release.library)
    yield made
    # The memory would stay as long as pytest keeps its directories.
    shutil.rmtree(directory)
    assert made.complaints() == []
    assert made.unmet() == []


@pytest.fixture
def xenstored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Xenstored]:
    """That of every process that a test starts."""
    store = Xenstored(tmp_path / "xenstored")
    monkeypatch.setenv("XENSTORED_PATH", str(store.path))
    yield store
    store.close()


@pytest.fixture
def restored(xenstored: Xenstored) -> Guest:
    """The guest that is to run in `destination`, as xenstored knows it."""
    return xenstored.make_domain(2)


@pytest.fixture
def destination(machine: Machine) -> Domain:
    return machine.domain(2)
