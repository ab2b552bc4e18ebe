"""`POST /v1/responses`, and what becomes of a stored response under `/v1/responses/{id}`."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from axion.errors import AxionError, InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.response_events import (
    ArgumentsDeltaEvent,
    ReasoningDeltaEvent,
    ResponseEvent,
    ResponseStream,
    TextDeltaEvent,
    collect_response,
)
from axion.openai.response_items import InputItem, dump_items, list_items, load_items
from axion.openai.response_object import DeletedResponse, Response, ResponseItemList
from axion.openai.responses import FIELD_NAMES, ResponsesRequest
from axion.openai.translation import in_words_of
from axion.server.endpoint import Call, model_response, off_loop
from axion.server.errors import as_axion_error
from axion.server.generation import GenerationEndpoint
from axion.server.response_store import StoredResponse
from axion.server.sse import EventStream, event_bytes
from axion.server.state import server_state

_FAST = 1  # of zlib's levels; what is streamed repeats itself, and shrinks to a tenth
_FINAL = ("response.completed", "response.incomplete")
_MAX_LISTED = 100
_MAX_SHOWN = 80
# They are in a response from the beginning, or nothing.
_INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")


class Responses(GenerationEndpoint[ResponsesRequest, ResponseEvent]):
    request_type = ResponsesRequest
    done = None

    async def generate(self, call: Call[ResponsesRequest]) -> AsyncGenerator[ResponseEvent, None]:
        request, previous, num_bytes = call.request, None, call.num_bytes
        if request.previous_response_id is not None:
            responses = call.state.responses
            previous = responses.get(request.previous_response_id, param="previous_response_id")
            num_bytes += previous.num_bytes
        items, chat = await off_loop(num_bytes, _conversation, request, previous)
        chunks = in_words_of(FIELD_NAMES, call.backend.chat(chat, call.id))
        stream = ResponseStream(request, call.model)
        streamed = zlib.compressobj(_FAST)
        told = b""
        try:
            async with aclosing(stream.events(chunks)) as events:
                async for event in events:
                    if request.keeps and request.stream:
                        told += streamed.compress(event_bytes(event.to_json(), event.type))
                    if event.type in _FINAL and request.keeps:
                        stored = StoredResponse(
                            stream.response.to_json(),
                            dump_items(items),
                            told + streamed.flush() if request.stream else b"",
                        )
                        call.state.responses.put(stream.response.id, stored)
                    yield event
        except Exception as error:
            failure = as_axion_error(error, call.request_id)
            if stream.started:
                yield stream.failed(failure)
            raise failure from None

    async def collect(
        self, request: ResponsesRequest, chunks: AsyncIterator[ResponseEvent]
    ) -> Response:
        return await collect_response(chunks)

    def has_tokens(self, chunk: ResponseEvent) -> bool:
        return isinstance(chunk, TextDeltaEvent | ReasoningDeltaEvent | ArgumentsDeltaEvent)

    def event_name(self, chunk: ResponseEvent) -> str:
        return chunk.type

    async def send_error(self, events: EventStream, error: AxionError) -> None:
        """`response.failed` has told it."""


def _conversation(
    request: ResponsesRequest, previous: StoredResponse | None
) -> tuple[list[InputItem], ChatCompletionRequest]:
    """The request's input behind what the previous response has seen and said, and as a chat."""
    items = request.items()
    if previous is not None:
        output = msgspec.json.decode(previous.response, type=_Output).output
        items = load_items(previous.items) + load_items(bytes(output)) + items
    return items, request.chat(items)


class _Output(msgspec.Struct):
    output: msgspec.Raw


def _query(request: Request, *known: str) -> QueryParams:
    """The query of a request for a stored response.

    Raises:
        InvalidRequestError: it asks for what this server does not have.
    """
    query = request.query_params
    for name, value in query.multi_items():
        if name in known or (name == "include_obfuscation" and value == "false"):
            continue
        if name in {"include", "include[]"} and value in _INCLUDABLE:
            continue
        shown = name[:_MAX_SHOWN]
        raise InvalidRequestError(f"{shown} is not supported in this query.", param=shown)
    return query


def _count(query: QueryParams, name: str, default: int, *, at_least: int, at_most: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or not (
        at_least <= int(text) <= at_most
    ):
        raise InvalidRequestError(f"{name} must be {at_least} to {at_most}.", param=name)
    return int(text)


async def stored_response(request: Request) -> HttpResponse:
    """`GET` gives the response again, `DELETE` forgets it."""
    responses = server_state(request.scope).responses
    id = request.path_params["id"]
    if request.method == "DELETE":
        responses.delete(id)
        deleted = DeletedResponse(id=id, object="response", deleted=True)
        return model_response(deleted)
    stored = responses.get(id)
    query = _query(request, "stream", "starting_after")
    if query.get("stream", "false") == "false":
        if "starting_after" in query:
            raise InvalidRequestError("starting_after needs stream=true.", param="starting_after")
        return HttpResponse(stored.response, media_type="application/json")
    if not stored.events:
        raise InvalidRequestError(
            "stream must be false: this response was not created with stream: true.",
            param="stream",
        )
    first = _count(query, "starting_after", -1, at_least=0, at_most=2**31) + 1
    events = zlib.decompress(stored.events).split(b"\n\n")
    body = b"\n\n".join(events[first:])
    return HttpResponse(body, media_type="text/event-stream")


async def input_items(request: Request) -> HttpResponse:
    """The conversation that a stored response answers, a page at a time."""
    stored = server_state(request.scope).responses.get(request.path_params["id"])
    query = _query(request, "limit", "order", "after")
    order = query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise InvalidRequestError("order must be 'asc' or 'desc'.", param="order")
    limit = _count(query, "limit", 20, at_least=1, at_most=_MAX_LISTED)
    items = list_items(load_items(stored.items))
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequestError("after must be the id of an item.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    answer = ResponseItemList(
        object="list",
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=len(page) < len(items),
    )
    return model_response(answer)
