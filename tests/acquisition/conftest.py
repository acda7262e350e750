"""The server, filled once; each test finds it as it was filled."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acquisition.catalogue_server import Server, serving
from tests.acquisition.served import Loop, fill


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, Any]]]:
    with serving() as server:
        yield server, fill(server, tmp_path_factory.mktemp("made"))


@pytest.fixture
def loop(prepared: tuple[Server, dict[str, Any]]) -> Iterator[Loop]:
    server, world = prepared
    before = dict(server.files)
    server.log.clear()
    yield Loop(server, world)
    server.files.clear()
    server.files.update(before)
    for state in (server.failures, server.cuts, server.no_ranges, server.redirects, server.types):
        state.clear()
    server.cut_over = 1000
