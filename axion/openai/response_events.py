"""The events of a response, and how they come from a chat."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import Field

from axion.errors import AxionError, InternalError
from axion.openai.chat_answer import ChatCompletionChunk, TokenLogprob
from axion.openai.fields import ResponseModel
from axion.openai.response_items import ItemStatus, new_id
from axion.openai.response_object import (
    IncompleteDetails,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputTextPart,
    ReasoningTextPart,
    Response,
    ResponseError,
    ResponseStatus,
    new_response,
    response_usage,
)
from axion.openai.responses import ResponsesRequest
from axion.openai.translation import (
    AnswerEnd,
    AnswerStart,
    BlockDelta,
    BlockEnd,
    BlockStart,
    Part,
    blocks,
)

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
        self.response = new_response(request, model)
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
        self.response.usage = response_usage(end.usage)
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
