from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.debian_packages import PackageUnavailableError
from tests.helper.libxenguest.peer import HEADERS_OF, libraries, with_xens_headers
from tests.unavailable import unavailable
from xen_save_helper.helper.hypervisors.xen.libraries import SUPPORTED

Peers = Callable[[str], str]


@pytest.fixture(scope="session")
def headers() -> tuple[str | Path, ...]:
    """The compiler's options for Xen's own headers, of release `HEADERS_OF`."""
    try:
        return with_xens_headers()
    except PackageUnavailableError as error:
        unavailable(str(error))


@pytest.fixture(scope="session")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Peers:
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
    return peers(HEADERS_OF)
