from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helper.hypervisors.xen.libraries import SUPPORTED
from tests.debian_packages import PackageUnavailableError, unpacked
from tests.helper.libxenguest.peer import HEADERS, libraries
from tests.unavailable import unavailable

Peers = Callable[[str], str]


@pytest.fixture(scope="session")
def headers() -> Path:
    try:
        return unpacked(HEADERS)
    except PackageUnavailableError as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def peers(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Peers:
    """LD_LIBRARY_PATH for the peer's libraries of a version."""
    built: dict[str, str] = {}

    def path(version: str) -> str:
        if version not in built:
            directory = tmp_path_factory.mktemp("peer") / version
            built[version] = str(libraries(directory, version))
        return built[version]

    return path


@pytest.fixture(params=SUPPORTED)
def each_version(request: pytest.FixtureRequest, peers: Peers) -> str:
    return peers(request.param)


@pytest.fixture
def xen(peers: Peers) -> str:
    return peers(SUPPORTED[0])
