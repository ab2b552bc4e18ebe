"""`POST /v1/responses`, and what becomes of a stored response under `/v1/responses/{id}`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from axion.errors import AxionError, InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.response_events import (
    ArgumentsDeltaEvent,
    DeletedResponse,
    ReasoningDeltaEvent,
    Response,
    ResponseEvent,
    ResponseItemList,
    ResponseStream,
    TextDeltaEvent,
    collect_response,
)
from axion.openai.responses import (
    FIELD_NAMES,
    InputItem,
    ResponsesRequest,
    dump_items,
    list_items,
    load_items,
)
from axion.openai.translation import in_words_of
from axion.server.endpoint import Call, model_response, off_loop
from axion.server.errors import as_axion_error
from axion.server.generation import GenerationEndpoint
from axion.server.response_store import StoredResponse
from axion.server.sse import EventStream
from axion.server.state import server_state

_FINAL = ("response.completed", "response.incomplete")
_MAX_LISTED = 100


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
        try:
            async with aclosing(stream.events(chunks)) as events:
                async for event in events:
                    if event.type in _FINAL and request.keeps:
                        response = stream.response.to_json()
                        stored = StoredResponse(response, dump_items(items))
                        call.state.responses.put(stream.response.id, stored)
                    yield event
        except Exception as error:
            failure = as_axion_error(error, call.request_id)
            if stream.started:
                yield stream.failed(failure)
            raise failure from None

    async def collect(self, chunks: AsyncIterator[ResponseEvent]) -> Response:
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


async def stored_response(request: Request) -> HttpResponse:
    """`GET` gives the response again, `DELETE` forgets it."""
    responses = server_state(request.scope).responses
    id = request.path_params["id"]
    if request.method == "DELETE":
        responses.delete(id)
        deleted = DeletedResponse(id=id, object="response", deleted=True)
        return model_response(deleted)
    if request.query_params.get("stream", "false") != "false":
        raise InvalidRequestError(
            "stream is not supported here: the events of a stored response are not kept.",
            param="stream",
        )
    return HttpResponse(responses.get(id).response, media_type="application/json")


async def input_items(request: Request) -> HttpResponse:
    """The conversation that a stored response answers, a page at a time."""
    stored = server_state(request.scope).responses.get(request.path_params["id"])
    query = request.query_params
    order = query.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise InvalidRequestError("order must be 'asc' or 'desc'.", param="order")
    limit = query.get("limit", "20")
    if not (
        limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= _MAX_LISTED
    ):
        raise InvalidRequestError(f"limit must be 1 to {_MAX_LISTED}.", param="limit")
    items = list_items(load_items(stored.items))
    if order == "desc":
        items.reverse()
    after = query.get("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise InvalidRequestError("after must be the id of an item.", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[: int(limit)]
    answer = ResponseItemList(
        object="list",
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=len(page) < len(items),
    )
    return model_response(answer)
