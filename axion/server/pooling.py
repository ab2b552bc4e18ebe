"""What embeddings, reranking and scores share: from a body to one answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from axion.backends.pooling import PoolingBackend
from axion.openai.fields import RequestModel
from axion.openai.parsing import parse_request
from axion.server.body import read_json_body
from axion.server.disconnect import cancelled_on_disconnect
from axion.server.endpoint import off_loop
from axion.server.state import server_state

RequestT = TypeVar("RequestT", bound=RequestModel)


class PoolingEndpoint(ABC, Generic[RequestT]):
    """An ASGI endpoint. A subclass says what is particular to its kind of request."""

    request_type: type[RequestT]

    @abstractmethod
    async def answer(self, backend: PoolingBackend, request: RequestT) -> bytes:
        """The answer's JSON."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = server_state(scope)
        body = await read_json_body(state, scope, receive)
        with state.admit():
            request = await off_loop(len(body), parse_request, self.request_type, body)
            del body
            # A client that leaves takes its texts out of the queue.
            async with cancelled_on_disconnect(receive):
                answer = await self.answer(state.pooling, request)
                await Response(answer, media_type="application/json")(scope, receive, send)
