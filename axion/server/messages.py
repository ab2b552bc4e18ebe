"""`POST /v1/messages` and `/v1/messages/count_tokens`, for clients of Anthropic's API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response

from axion.errors import AxionError
from axion.openai.message_events import (
    BlockDeltaEvent,
    MessagesAnswer,
    MessagesEvent,
    MessageTokensCount,
    collect_message,
    message_events,
)
from axion.openai.messages import CountTokensRequest, MessagesRequest, error_body
from axion.openai.translation import in_words_of
from axion.server.endpoint import Call, ModelEndpoint, model_response, off_loop
from axion.server.generation import GenerationEndpoint
from axion.server.sse import EventStream


class Messages(GenerationEndpoint[MessagesRequest, MessagesEvent]):
    request_type = MessagesRequest
    done = None

    async def generate(self, call: Call[MessagesRequest]) -> AsyncGenerator[MessagesEvent, None]:
        chat = await off_loop(call.num_bytes, call.request.chat)
        chunks = in_words_of(call.request.field_names, call.backend.chat(chat, call.id))
        async with aclosing(message_events(call.model, chunks)) as events:
            async for event in events:
                yield event

    async def collect(
        self, request: MessagesRequest, chunks: AsyncIterator[MessagesEvent]
    ) -> MessagesAnswer:
        return await collect_message(chunks)

    def has_tokens(self, chunk: MessagesEvent) -> bool:
        return isinstance(chunk, BlockDeltaEvent)

    def event_name(self, chunk: MessagesEvent) -> str:
        return chunk.type

    def error_body(self, error: AxionError) -> dict[str, Any]:
        return error_body(error)

    async def send_error(self, events: EventStream, error: AxionError) -> None:
        await events.send(msgspec.json.encode(error_body(error)), "error")


class CountTokens(ModelEndpoint[CountTokensRequest]):
    request_type = CountTokensRequest

    async def respond(self, call: Call[CountTokensRequest]) -> Response:
        chat = await off_loop(call.num_bytes, call.request.chat)
        tokens = await call.backend.tokenize(chat)
        return model_response(MessageTokensCount(input_tokens=len(tokens.token_ids)))

    def error_body(self, error: AxionError) -> dict[str, Any]:
        return error_body(error)
