"""What the other APIs share: their requests as requests for chat, a chat's chunks as blocks.

Responses and Messages both show an answer as a sequence of blocks (reasoning, text, calls of
tools), one after another. That sequence is found here, once.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Literal, NamedTuple

from axion.errors import InternalError, InvalidRequestError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk, ChatFinishReason, Delta, TokenLogprob
from axion.openai.common import Usage
from axion.openai.parsing import validate_request

BlockKind = Literal["reasoning", "text", "tool_call"]


class AnswerStart(NamedTuple):
    """The model has begun; `usage` as far as it is known."""

    usage: Usage | None


class BlockStart(NamedTuple):
    """Attributes:
    id, name: those of a tool call.
    """

    kind: BlockKind
    id: str = ""
    name: str = ""


class BlockDelta(NamedTuple):
    """Text of the open block; of a tool call, its arguments.

    Attributes:
        logprobs: those of the tokens that are certain now, if they were asked for.
    """

    text: str
    logprobs: list[TokenLogprob]


class BlockEnd(NamedTuple):
    """Attributes:
    complete: the answer was not cut off in it.
    """

    complete: bool


class AnswerEnd(NamedTuple):
    finish_reason: ChatFinishReason
    stop_reason: int | str | None
    usage: Usage


Part = AnswerStart | BlockStart | BlockDelta | BlockEnd | AnswerEnd


async def blocks(
    chunks: AsyncGenerator[ChatCompletionChunk, None],
) -> AsyncGenerator[Part, None]:
    """The one answer in a chat's chunks, block by block; closing this closes `chunks`.

    Raises:
        InternalError: the chunks ended before the answer did.
    """
    open_block: str | int | None = None
    logprobs: list[TokenLogprob] = []  # of text that is still held back
    finish_reason: ChatFinishReason | None = None
    stop_reason: int | str | None = None
    usage: Usage | None = None
    started = False
    async with aclosing(chunks):
        async for chunk in chunks:
            usage = chunk.usage or usage
            if not started:
                started = True
                yield AnswerStart(usage)
            for choice in chunk.choices:
                if choice.logprobs is not None:
                    logprobs += choice.logprobs.content or ()
                for block, start, text in _texts(choice.delta):
                    if block != open_block:
                        if open_block is not None:
                            yield BlockEnd(complete=True)
                        yield start
                        open_block = block
                    if text:
                        is_text = start.kind == "text"
                        yield BlockDelta(text, logprobs if is_text else [])
                        logprobs = [] if is_text else logprobs
                finish_reason = choice.finish_reason or finish_reason
                stop_reason = choice.stop_reason if choice.finish_reason else stop_reason
    if finish_reason is None or usage is None:
        raise InternalError("The answer ended early.")
    if open_block is not None:
        if logprobs and open_block == "text":
            yield BlockDelta("", logprobs)
        yield BlockEnd(complete=finish_reason != "length")
    yield AnswerEnd(finish_reason, stop_reason, usage)


def _texts(delta: Delta) -> Iterator[tuple[str | int, BlockStart, str]]:
    """What a delta adds: the block's name or the call's index, its opening, and the text."""
    if delta.reasoning_content:
        yield "reasoning", BlockStart("reasoning"), delta.reasoning_content
    if delta.content:
        yield "text", BlockStart("text"), delta.content
    for call in delta.tool_calls or ():
        function = call.function
        start = BlockStart("tool_call", call.id or "", function.name or "")
        yield call.index, start, function.arguments or ""


# Patterns of the beginning of a chat request's `param`, to the other API's name of the field.
FieldNames = Mapping[str, str]


def chat_request(fields: dict[str, Any], names: FieldNames) -> ChatCompletionRequest:
    """A streaming request for chat, from the fields of another API's; None is left out.

    Raises:
        InvalidRequestError: chat refuses a field; `param` and message have the name in `names`.
    """
    body = {name: value for name, value in fields.items() if value is not None}
    body["stream"] = True
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    try:
        return validate_request(ChatCompletionRequest, body)
    except InvalidRequestError as error:
        raise _renamed(error, names) from None


async def in_words_of(
    names: FieldNames, chunks: AsyncGenerator[ChatCompletionChunk, None]
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The same chunks; an error about the request names the field as the other API does."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk
    except InvalidRequestError as error:
        raise _renamed(error, names) from None


def _renamed(error: InvalidRequestError, names: FieldNames) -> InvalidRequestError:
    if error.param is None:
        return error
    for pattern, name in names.items():
        param, num_found = re.subn(f"^{pattern}", name, error.param)
        if num_found:
            message = error.message.replace(error.param, param, 1)
            return type(error)(message, param=param, code=error.code, headers=error.headers)
    return error
