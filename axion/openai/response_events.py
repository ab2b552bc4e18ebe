"""What `/v1/responses` gives: the response, its events, and how both come from a chat."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from axion.errors import AxionError, InternalError
from axion.openai.chat_answer import ChatCompletionChunk, TokenLogprob
from axion.openai.common import Usage
from axion.openai.fields import RequestModel, ResponseModel
from axion.openai.responses import (
    ItemStatus,
    ResponsesRequest,
    TextConfig,
    new_id,
)
from axion.openai.translation import (
    AnswerEnd,
    AnswerStart,
    BlockDelta,
    BlockEnd,
    BlockStart,
    Part,
    blocks,
)


class OutputTextPart(ResponseModel):
    type: Literal["output_text"]
    text: str
    annotations: list[JsonValue]
    logprobs: list[TokenLogprob]


class OutputMessage(ResponseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputTextPart]


class OutputFunctionCall(ResponseModel):
    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class ReasoningTextPart(ResponseModel):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(ResponseModel):
    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[JsonValue]
    content: list[ReasoningTextPart]


OutputItem = Annotated[
    OutputMessage | OutputFunctionCall | OutputReasoning, Field(discriminator="type")
]


class ResponseError(ResponseModel):
    code: Literal["server_error"]
    message: str


class IncompleteDetails(ResponseModel):
    reason: Literal["max_output_tokens"]


class InputTokensDetails(ResponseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(ResponseModel):
    reasoning_tokens: int


class ResponseUsage(ResponseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class Response(ResponseModel):
    """What became of a request.

    Attributes:
        created_at, completed_at: seconds since 1970.
        temperature, top_p: null where the request leaves them to the model's recommendation.
    """

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, JsonValue]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float | None
    text: dict[str, JsonValue]
    tool_choice: str | dict[str, JsonValue]
    tools: list[dict[str, JsonValue]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    user: str | None


class DeletedResponse(ResponseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ResponseItemList(ResponseModel):
    object: Literal["list"]
    data: list[dict[str, JsonValue]]
    first_id: str | None
    last_id: str | None
    has_more: bool


StateEventType = Literal[
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]


class ResponseStateEvent(ResponseModel):
    type: StateEventType
    sequence_number: int
    response: Response


class OutputItemEvent(ResponseModel):
    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: OutputItem


class ContentPartEvent(ResponseModel):
    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: Annotated[OutputTextPart | ReasoningTextPart, Field(discriminator="type")]


class TextDeltaEvent(ResponseModel):
    type: Literal["response.output_text.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]


class TextDoneEvent(ResponseModel):
    type: Literal["response.output_text.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDeltaEvent(ResponseModel):
    type: Literal["response.reasoning_text.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str


class ReasoningDoneEvent(ResponseModel):
    type: Literal["response.reasoning_text.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str


class ArgumentsDeltaEvent(ResponseModel):
    type: Literal["response.function_call_arguments.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(ResponseModel):
    type: Literal["response.function_call_arguments.done"]
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


ResponseEvent = (
    ResponseStateEvent
    | OutputItemEvent
    | ContentPartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ReasoningDeltaEvent
    | ReasoningDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
)


class ResponseStream:
    """The events of one response, made from the chunks of a chat.

    Attributes:
        response: as it is now.
    """

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        self.response = _new_response(request, model)
        self._num_events = 0

    async def events(
        self, chunks: AsyncGenerator[ChatCompletionChunk, None]
    ) -> AsyncGenerator[ResponseEvent, None]:
        """The events up to `response.completed` or `response.incomplete`.

        Raises:
            AxionError: the chat's; before the first event nothing has been told yet.
        """
        async with aclosing(blocks(chunks)) as parts:
            async for part in parts:
                for event in self._take(part):
                    yield event

    @property
    def started(self) -> bool:
        return self._num_events > 0

    def failed(self, error: AxionError) -> ResponseEvent:
        """The last event of a response that broke off."""
        self.response.error = ResponseError(code="server_error", message=error.message)
        return self._state("response.failed", "failed")

    def _take(self, part: Part) -> Iterator[ResponseEvent]:
        if isinstance(part, AnswerStart):
            yield self._state("response.created", "in_progress")
            yield self._state("response.in_progress", "in_progress")
        elif isinstance(part, BlockStart):
            yield from self._start(part)
        elif isinstance(part, BlockDelta):
            yield self._delta(part)
        elif isinstance(part, BlockEnd):
            yield from self._end("completed" if part.complete else "incomplete")
        else:
            yield self._finish(part)

    def _start(self, block: BlockStart) -> Iterator[ResponseEvent]:
        item: OutputMessage | OutputFunctionCall | OutputReasoning
        if block.kind == "tool_call":
            item = OutputFunctionCall(
                id=new_id("fc"),
                type="function_call",
                status="in_progress",
                call_id=block.id,
                name=block.name,
                arguments="",
            )
        elif block.kind == "text":
            item = OutputMessage(
                id=new_id("msg"),
                type="message",
                role="assistant",
                status="in_progress",
                content=[],
            )
        else:
            item = OutputReasoning(
                id=new_id("rs"), type="reasoning", status="in_progress", summary=[], content=[]
            )
        self.response.output.append(item)
        yield self._item("response.output_item.added")
        if isinstance(item, OutputMessage):
            item.content.append(
                OutputTextPart(type="output_text", text="", annotations=[], logprobs=[])
            )
            yield self._content_part("response.content_part.added")
        elif isinstance(item, OutputReasoning):
            item.content.append(ReasoningTextPart(type="reasoning_text", text=""))
            yield self._content_part("response.content_part.added")

    def _delta(self, delta: BlockDelta) -> ResponseEvent:
        item = self.response.output[-1]
        if isinstance(item, OutputFunctionCall):
            item.arguments += delta.text
            return ArgumentsDeltaEvent(
                type="response.function_call_arguments.delta", delta=delta.text, **self._place()
            )
        item.content[0].text += delta.text
        if isinstance(item, OutputReasoning):
            return ReasoningDeltaEvent(
                type="response.reasoning_text.delta",
                delta=delta.text,
                content_index=0,
                **self._place(),
            )
        item.content[0].logprobs += delta.logprobs
        return TextDeltaEvent(
            type="response.output_text.delta",
            delta=delta.text,
            logprobs=delta.logprobs,
            content_index=0,
            **self._place(),
        )

    def _end(self, status: ItemStatus) -> Iterator[ResponseEvent]:
        item = self.response.output[-1]
        if isinstance(item, OutputFunctionCall):
            yield ArgumentsDoneEvent(
                type="response.function_call_arguments.done",
                name=item.name,
                arguments=item.arguments,
                **self._place(),
            )
        elif isinstance(item, OutputReasoning):
            yield ReasoningDoneEvent(
                type="response.reasoning_text.done",
                text=item.content[0].text,
                content_index=0,
                **self._place(),
            )
            yield self._content_part("response.content_part.done")
        else:
            yield TextDoneEvent(
                type="response.output_text.done",
                text=item.content[0].text,
                logprobs=item.content[0].logprobs,
                content_index=0,
                **self._place(),
            )
            yield self._content_part("response.content_part.done")
        item.status = status
        yield self._item("response.output_item.done")

    def _finish(self, end: AnswerEnd) -> ResponseEvent:
        self.response.usage = _usage(end.usage)
        if end.finish_reason == "length":
            self.response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
            return self._state("response.incomplete", "incomplete")
        self.response.completed_at = int(time.time())
        return self._state("response.completed", "completed")

    def _state(self, type: StateEventType, status: ResponseStatus) -> ResponseEvent:
        self.response.status = status
        return ResponseStateEvent(
            type=type,
            sequence_number=self._next_number(),
            response=self.response.model_copy(update={"output": [*self.response.output]}),
        )

    def _item(
        self, type: Literal["response.output_item.added", "response.output_item.done"]
    ) -> ResponseEvent:
        return OutputItemEvent(
            type=type,
            sequence_number=self._next_number(),
            output_index=len(self.response.output) - 1,
            item=self.response.output[-1].model_copy(deep=True),
        )

    def _content_part(
        self, type: Literal["response.content_part.added", "response.content_part.done"]
    ) -> ResponseEvent:
        item = self.response.output[-1]
        assert not isinstance(item, OutputFunctionCall)
        return ContentPartEvent(
            type=type,
            content_index=0,
            part=item.content[0].model_copy(),
            **self._place(),
        )

    def _place(self) -> dict[str, Any]:
        """The fields that say which item an event is about."""
        return {
            "sequence_number": self._next_number(),
            "item_id": self.response.output[-1].id,
            "output_index": len(self.response.output) - 1,
        }

    def _next_number(self) -> int:
        self._num_events += 1
        return self._num_events - 1


async def collect_response(events: AsyncIterator[ResponseEvent]) -> Response:
    """The response that the last event holds.

    Raises:
        InternalError: the events ended before the response did.
    """
    last: ResponseEvent | None = None
    async for event in events:
        last = event
    if not isinstance(last, ResponseStateEvent):
        raise InternalError("The answer ended early.")
    return last.response


def _new_response(request: ResponsesRequest, model: str) -> Response:
    text = request.text or TextConfig()
    effort = request.reasoning.effort if request.reasoning else None
    return Response(
        id=new_id("resp"),
        object="response",
        created_at=int(time.time()),
        completed_at=None,
        status="in_progress",
        error=None,
        incomplete_details=None,
        model=model,
        output=[],
        usage=None,
        background=False,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=None,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning={"effort": effort, "summary": None},
        safety_identifier=request.safety_identifier,
        service_tier="default",
        store=request.keeps,
        temperature=request.temperature,
        text={"format": {"type": "text"}, **text.model_dump(by_alias=True, exclude_none=True)},
        tool_choice=_plain(request.tool_choice or "auto"),
        tools=[_plain(tool) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
        truncation="disabled",
        user=request.user,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, RequestModel):
        return value.model_dump(by_alias=True, exclude_none=True)
    return value


def _usage(usage: Usage) -> ResponseUsage:
    details = usage.completion_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=usage.prompt_tokens_details.cached_tokens, cache_write_tokens=0
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(
            reasoning_tokens=details.reasoning_tokens if details is not None else 0
        ),
        total_tokens=usage.total_tokens,
    )
