"""What `POST /v1/messages` answers, and the events of its stream: a chat's chunks in blocks."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from axion.errors import InternalError
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.common import Usage
from axion.openai.fields import ResponseModel
from axion.openai.translation import (
    AnswerEnd,
    AnswerStart,
    BlockDelta,
    BlockEnd,
    BlockStart,
    blocks,
)


class MessageTokensCount(ResponseModel):
    input_tokens: int


class MessagesOutputDetails(ResponseModel):
    thinking_tokens: int


class MessagesUsage(ResponseModel):
    """Attributes:
    input_tokens: without those that the prefix cache supplied.
    output_tokens_details: there when the answer is whole.
    """

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: MessagesOutputDetails | None


class AnswerText(ResponseModel):
    type: Literal["text"]
    text: str
    citations: None


class AnswerToolUse(ResponseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, JsonValue]


class AnswerThinking(ResponseModel):
    type: Literal["thinking"]
    thinking: str
    signature: str


AnswerBlock = Annotated[AnswerText | AnswerToolUse | AnswerThinking, Field(discriminator="type")]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessagesAnswer(ResponseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage


class MessageStartEvent(ResponseModel):
    type: Literal["message_start"]
    message: MessagesAnswer


class PingEvent(ResponseModel):
    type: Literal["ping"]


class BlockStartEvent(ResponseModel):
    type: Literal["content_block_start"]
    index: int
    content_block: AnswerBlock


class TextDelta(ResponseModel):
    type: Literal["text_delta"]
    text: str


class InputJsonDelta(ResponseModel):
    type: Literal["input_json_delta"]
    partial_json: str


class ThinkingDelta(ResponseModel):
    type: Literal["thinking_delta"]
    thinking: str


class BlockDeltaEvent(ResponseModel):
    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[TextDelta | InputJsonDelta | ThinkingDelta, Field(discriminator="type")]


class BlockStopEvent(ResponseModel):
    type: Literal["content_block_stop"]
    index: int


class StopDelta(ResponseModel):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDeltaEvent(ResponseModel):
    type: Literal["message_delta"]
    delta: StopDelta
    usage: MessagesUsage


class MessageStopEvent(ResponseModel):
    type: Literal["message_stop"]


MessagesEvent = Annotated[
    MessageStartEvent
    | PingEvent
    | BlockStartEvent
    | BlockDeltaEvent
    | BlockStopEvent
    | MessageDeltaEvent
    | MessageStopEvent,
    Field(discriminator="type"),
]


async def message_events(
    model: str, chunks: AsyncGenerator[ChatCompletionChunk, None]
) -> AsyncGenerator[MessagesEvent, None]:
    """The events of one answer, made from the chunks of a chat; closing this closes `chunks`."""
    num_blocks = 0
    kind = ""
    async with aclosing(blocks(chunks)) as parts:
        async for part in parts:
            if isinstance(part, AnswerStart):
                yield MessageStartEvent(type="message_start", message=_new_answer(model, part))
                yield PingEvent(type="ping")
            elif isinstance(part, BlockStart):
                kind = part.kind
                yield BlockStartEvent(
                    type="content_block_start", index=num_blocks, content_block=_new_block(part)
                )
            elif isinstance(part, BlockDelta):
                if part.text:
                    yield BlockDeltaEvent(
                        type="content_block_delta", index=num_blocks, delta=_delta(kind, part.text)
                    )
            elif isinstance(part, BlockEnd):
                yield BlockStopEvent(type="content_block_stop", index=num_blocks)
                num_blocks += 1
            else:
                yield _message_delta(part)
                yield MessageStopEvent(type="message_stop")


def _new_answer(model: str, start: AnswerStart) -> MessagesAnswer:
    return MessagesAnswer(
        id=f"msg_{uuid.uuid4().hex}",
        type="message",
        role="assistant",
        model=model,
        content=[],
        stop_reason=None,
        stop_sequence=None,
        usage=_usage(start.usage),
    )


def _new_block(start: BlockStart) -> AnswerText | AnswerToolUse | AnswerThinking:
    if start.kind == "tool_call":
        return AnswerToolUse(type="tool_use", id=start.id, name=start.name, input={})
    if start.kind == "text":
        return AnswerText(type="text", text="", citations=None)
    return AnswerThinking(type="thinking", thinking="", signature="")


def _delta(kind: str, text: str) -> TextDelta | InputJsonDelta | ThinkingDelta:
    if kind == "tool_call":
        return InputJsonDelta(type="input_json_delta", partial_json=text)
    if kind == "text":
        return TextDelta(type="text_delta", text=text)
    return ThinkingDelta(type="thinking_delta", thinking=text)


def _message_delta(end: AnswerEnd) -> MessageDeltaEvent:
    stop_reason: StopReason = "end_turn"
    stop_sequence = None
    if end.finish_reason == "length":
        stop_reason = "max_tokens"
    elif isinstance(end.stop_reason, str):
        stop_reason, stop_sequence = "stop_sequence", end.stop_reason
    elif end.finish_reason == "tool_calls":
        stop_reason = "tool_use"
    return MessageDeltaEvent(
        type="message_delta",
        delta=StopDelta(stop_reason=stop_reason, stop_sequence=stop_sequence),
        usage=_usage(end.usage),
    )


def _usage(usage: Usage | None) -> MessagesUsage:
    cached = usage.prompt_tokens_details.cached_tokens if usage else 0
    details = usage.completion_tokens_details if usage else None
    return MessagesUsage(
        input_tokens=usage.prompt_tokens - cached if usage else 0,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens if usage else 0,
        output_tokens_details=MessagesOutputDetails(thinking_tokens=details.reasoning_tokens)
        if details
        else None,
    )


async def collect_message(events: AsyncIterator[MessagesEvent]) -> MessagesAnswer:
    """One whole answer from the events of a request that does not stream.

    Raises:
        InternalError: the events ended before the answer did.
    """
    answer: MessagesAnswer | None = None
    arguments = ""
    async for event in events:
        if isinstance(event, MessageStartEvent):
            answer = event.message
        if answer is None:
            break
        if isinstance(event, BlockStartEvent):
            answer.content.append(event.content_block)
        elif isinstance(event, BlockDeltaEvent):
            arguments += _extend(answer.content[-1], event.delta)
        elif isinstance(event, BlockStopEvent):
            block = answer.content[-1]
            if isinstance(block, AnswerToolUse):
                block.input, arguments = _parsed(arguments), ""
        elif isinstance(event, MessageDeltaEvent):
            answer.stop_reason = event.delta.stop_reason
            answer.stop_sequence = event.delta.stop_sequence
            answer.usage = event.usage
    if answer is None or answer.stop_reason is None:
        raise InternalError("The answer ended early.")
    return answer


def _extend(
    block: AnswerText | AnswerToolUse | AnswerThinking,
    delta: TextDelta | InputJsonDelta | ThinkingDelta,
) -> str:
    """Adds the delta to the block; what is JSON of a tool's input is returned instead."""
    if isinstance(delta, InputJsonDelta):
        return delta.partial_json
    if isinstance(block, AnswerText) and isinstance(delta, TextDelta):
        block.text += delta.text
    elif isinstance(block, AnswerThinking) and isinstance(delta, ThinkingDelta):
        block.thinking += delta.thinking
    return ""


def _parsed(arguments: str) -> dict[str, JsonValue]:
    """A tool's input; empty where the answer was cut off inside it."""
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
