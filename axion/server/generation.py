"""What endpoints that generate share: from a request to a stream of events, or to one answer."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import ClassVar, Generic, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from axion.errors import AxionError
from axion.openai.common import StreamableRequest
from axion.openai.fields import ResponseModel
from axion.server.endpoint import Call, ModelEndpoint
from axion.server.errors import as_axion_error
from axion.server.sse import DONE, EventStream

logger = logging.getLogger("axion.server")

RequestT = TypeVar("RequestT", bound=StreamableRequest)
ChunkT = TypeVar("ChunkT", bound=ResponseModel)


class GenerationEndpoint(ModelEndpoint[RequestT], Generic[RequestT, ChunkT]):
    """An endpoint whose answer is a stream of chunks, or is collected from one.

    Attributes:
        done: what follows the last chunk of a stream, if anything.
    """

    done: ClassVar[bytes | None] = DONE

    @abstractmethod
    def generate(self, call: Call[RequestT]) -> AsyncGenerator[ChunkT, None]:
        """Start the request on its backend; closing this ends it there."""

    @abstractmethod
    async def collect(self, request: RequestT, chunks: AsyncIterator[ChunkT]) -> ResponseModel:
        """One whole answer."""

    @abstractmethod
    def has_tokens(self, chunk: ChunkT) -> bool:
        """Whether the chunk is more than an opening or a closing."""

    def event_name(self, chunk: ChunkT) -> str:
        """The chunk's name as a server-sent event; empty for none."""
        return ""

    async def send_error(self, events: EventStream, error: AxionError) -> None:
        """Tell the client of a stream that it breaks off."""
        await events.send(msgspec.json.encode(self.error_body(error)))

    async def respond(self, call: Call[RequestT]) -> Response:
        """The response to a request that does not stream."""
        body = await self.whole(call, self.generate(call))
        return Response(body, media_type="application/json")

    async def whole(self, call: Call[RequestT], chunks: AsyncGenerator[ChunkT, None]) -> bytes:
        """The JSON of one whole answer."""
        async with aclosing(self._timed(call, chunks)) as timed:
            return (await self.collect(call.request, timed)).to_json()

    async def send(self, call: Call[RequestT], scope: Scope, receive: Receive, send: Send) -> None:
        if not call.request.stream:
            await super().send(call, scope, receive, send)
            return
        timed = self._timed(call, self.generate(call))
        async with aclosing(timed) as chunks, EventStream(send) as events:
            try:
                async for chunk in chunks:
                    await events.send(chunk.to_json(), self.event_name(chunk))
                if self.done is not None:
                    await events.send(self.done)
            except Exception as error:
                if not events.started:
                    raise
                # No [DONE] after it: the answer is not whole, and clients raise on the error.
                failure = as_axion_error(error, call.request_id)
                logger.warning("request %s ended early: %s", call.request_id, failure.code)
                await self.send_error(events, failure)

    async def _timed(
        self, call: Call[RequestT], chunks: AsyncGenerator[ChunkT, None]
    ) -> AsyncGenerator[ChunkT, None]:
        """The chunks as they come, measured; closing this closes `chunks`."""
        metrics = call.state.metrics
        observe = metrics.time_to_first_token.labels(call.model).observe
        before = call.arrived
        async with aclosing(chunks):
            async for chunk in chunks:
                if self.has_tokens(chunk):
                    now = time.perf_counter()
                    observe(now - before)
                    if before == call.arrived:
                        observe = metrics.inter_token_latency.labels(call.model).observe
                    before = now
                yield chunk
