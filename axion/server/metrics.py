"""`GET /metrics`: Prometheus text format."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from axion.server.state import server_state


async def metrics(request: Request) -> Response:
    state = server_state(request.scope)
    content = state.metrics.render(await state.registry.health(), state.pooling.health())
    return Response(content, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})
