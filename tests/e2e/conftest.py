"""The server of those tests that need nothing but the bundled model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.test_server import Server, start


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start(tmp_path_factory.mktemp("server"))
    yield server
    assert server.stop() == 0
