"""Around every request: its id, the headers every response has, the access log, the counters."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from axion.observability.metrics import Metrics

logger = logging.getLogger("axion.http")

CLIENT_CLOSED_REQUEST = 499
MAX_LOGGED_PATH = 200

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")


class RequestMiddleware:
    """Gives the request its id, logs it and counts it.

    A client's own `X-Request-ID` is kept if it is short and plain; it goes back in the response
    and into the log. The query string is not logged: people put keys there.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived = time.perf_counter()
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {}).update(request_id=request_id, arrived=arrived)
        status = CLIENT_CLOSED_REQUEST

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        finally:
            self._record(scope, request_id, status, time.perf_counter() - arrived)

    def _record(self, scope: Scope, request_id: str, status: int, duration: float) -> None:
        route = scope.get("route")
        endpoint = route.path if route is not None else "other"
        self.metrics.requests.labels(endpoint, status).inc()
        self.metrics.request_duration.labels(endpoint).observe(duration)
        if logger.isEnabledFor(logging.INFO):
            fields = {
                "method": scope["method"],
                "path": scope["path"][:MAX_LOGGED_PATH],
                "status": status,
                "duration_ms": round(duration * 1e3, 1),
                "request_id": request_id,
                "client": (scope.get("client") or ("-",))[0],
            }
            logger.info(
                "%(method)s %(path)s %(status)s %(duration_ms)s ms %(request_id)s %(client)s",
                fields,
                extra=fields,
            )
