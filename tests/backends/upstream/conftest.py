from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from axion.backends.upstream.client import Upstream
from tests.backends.fake_server import DEFAULTS, FakeServer
from tests.backends.upstream.harness import HONOURS_ALL, STYLES


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, FakeServer]]:
    servers = {style: FakeServer(style) for style in STYLES}
    yield servers
    for server in servers.values():
        server.close()


@pytest.fixture
def fake(servers: dict[str, FakeServer]) -> Callable[..., FakeServer]:
    def configured(style: str = "vllm", **settings: Any) -> FakeServer:
        try:
            servers[style].control(**DEFAULTS | settings)
        except httpx.ConnectError:  # a test had it die
            servers[style].close()
            servers[style] = FakeServer(style, **settings)
        return servers[style]

    return configured


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., Upstream]]:
    made: list[Upstream] = []

    def create(server: FakeServer, **arguments: Any) -> Upstream:
        given = {"engine": "fake", "capabilities": HONOURS_ALL, "upstream_model": "fake-model"}
        made.append(Upstream(server.url, **{**given, "served_name": "m", **arguments}))
        return made[-1]

    yield create
    for one in made:
        await one.close()
