"""Every test of the contract takes `host`, and so runs against every database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores.contract.hosts import NAMES, OPEN, Chroma, Host


def opened(request: pytest.FixtureRequest, folder: Path) -> Iterator[Host]:
    if request.param == "chroma-server":
        host: Host = Chroma(request.getfixturevalue("chroma_server").url, exclusive=False)
    else:
        host = OPEN[request.param](folder / "db")
    yield host
    host.close()


@pytest.fixture(params=NAMES)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    yield from opened(request, tmp_path)


@pytest.fixture(scope="class", params=NAMES)
def shared_host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """For the tests of a class that only read what one of them wrote."""
    yield from opened(request, tmp_path_factory.mktemp("shared"))
