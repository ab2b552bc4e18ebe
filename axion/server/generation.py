"""What chat and text completions share: from a body to a stream of chunks, or to one answer."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from axion.backends.base import InferenceBackend
from axion.openai.common import GenerationRequest, ResponseModel, parse_request
from axion.server.body import SMALL_BODY_BYTES, read_json_body
from axion.server.disconnect import cancelled_on_disconnect
from axion.server.errors import as_axion_error
from axion.server.sse import DONE, EventStream
from axion.server.state import server_state

logger = logging.getLogger("axion.server")

# One thread: parsing holds the interpreter, so that more would only slow all others down.
_parser = ThreadPoolExecutor(1, "parser")

RequestT = TypeVar("RequestT", bound=GenerationRequest)
ChunkT = TypeVar("ChunkT", bound=ResponseModel)


class GenerationEndpoint(Generic[RequestT, ChunkT]):
    """An ASGI endpoint. A subclass says what is particular to its kind of request."""

    request_type: type[RequestT]

    def generate(
        self, backend: InferenceBackend, request: RequestT, request_id: str
    ) -> AsyncGenerator[ChunkT, None]:
        """Start the request on `backend`."""
        raise NotImplementedError

    async def collect(self, chunks: AsyncIterator[ChunkT]) -> ResponseModel:
        """One whole answer."""
        raise NotImplementedError

    def has_tokens(self, chunk: ChunkT) -> bool:
        """Whether the chunk is more than an opening or a closing."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = server_state(scope)
        # A place is taken once the body is there: slow clients must not hold the places.
        body = await read_json_body(state, scope, receive)
        with state.admit():
            request = await self._parse(body)
            del body  # it may be large, and the answer long
            served = state.registry.get(request.model)
            backend = served.require_ready()
            async with cancelled_on_disconnect(receive):
                if request.stream:
                    chunks = self.generate(backend, request, new_request_id())
                    await self._stream(self._timed(chunks, scope, served.name), scope, send)
                else:
                    response = await self.respond(scope, backend, request, served.name)
                    await response(scope, receive, send)

    async def respond(
        self, scope: Scope, backend: InferenceBackend, request: RequestT, model: str
    ) -> Response:
        """The response to a request that does not stream, from the served model `model`."""
        chunks = self.generate(backend, request, new_request_id())
        return Response(await self.whole(scope, chunks, model), media_type="application/json")

    async def whole(self, scope: Scope, chunks: AsyncGenerator[ChunkT, None], model: str) -> bytes:
        """The JSON of one whole answer."""
        async with aclosing(self._timed(chunks, scope, model)) as timed:
            return (await self.collect(timed)).to_json()

    async def _parse(self, body: bytes) -> RequestT:
        if len(body) <= SMALL_BODY_BYTES:  # less than a millisecond
            return parse_request(self.request_type, body)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_parser, parse_request, self.request_type, body)

    async def _stream(self, chunks: AsyncGenerator[ChunkT, None], scope: Scope, send: Send) -> None:
        request_id = scope["state"]["request_id"]
        async with aclosing(chunks), EventStream(send) as events:
            try:
                async for chunk in chunks:
                    await events.send(chunk.to_json())
                await events.send(DONE)
            except Exception as error:
                if not events.started:
                    raise
                # No [DONE] after it: the answer is not whole, and clients raise on the error.
                answer = as_axion_error(error, request_id)
                logger.warning("request %s ended early: %s", request_id, answer.code)
                await events.send(msgspec.json.encode(answer.body()))

    async def _timed(
        self, chunks: AsyncGenerator[ChunkT, None], scope: Scope, model: str
    ) -> AsyncGenerator[ChunkT, None]:
        """The chunks as they come, measured; closing this closes `chunks`."""
        metrics, arrived = server_state(scope).metrics, scope["state"]["arrived"]
        observe = metrics.time_to_first_token.labels(model).observe
        before = arrived
        async with aclosing(chunks):
            async for chunk in chunks:
                if self.has_tokens(chunk):
                    now = time.perf_counter()
                    observe(now - before)
                    if before == arrived:
                        observe = metrics.inter_token_latency.labels(model).observe
                    before = now
                yield chunk


def new_request_id() -> str:
    """Not the client's request id: an engine needs one that nobody else can choose."""
    return uuid.uuid4().hex
