"""`POST /v1/chat/completions`: the answer and its chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from pydantic.json_schema import SkipJsonSchema

from axion.openai.answer import Answer, Chunk, Part, PromptLogprobs, collect, joined
from axion.openai.fields import ResponseModel


class TopLogprob(ResponseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(ResponseModel):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(ResponseModel):
    content: list[TokenLogprob] | None
    refusal: None


class DeltaFunction(ResponseModel):
    name: str | None = None
    arguments: str


class FunctionCall(DeltaFunction):
    name: str


class MessageToolCall(ResponseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class DeltaToolCall(ResponseModel):
    """A call, or with nothing but `index` and `arguments` what follows of one."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: DeltaFunction


class Delta(ResponseModel):
    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ChunkChoice(Part):
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatFinishReason | None


class ChatCompletionChunk(Chunk[ChunkChoice]):
    """Attributes:
    prompt_token_ids: in the first chunk, with `return_token_ids`.
    prompt_logprobs: in the last one of an answer that is not streamed to the client.
    """

    object: Literal["chat.completion.chunk"]
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: SkipJsonSchema[PromptLogprobs | None] = None


class AssistantAnswer(ResponseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None


class Choice(ResponseModel):
    index: int
    message: AssistantAnswer
    logprobs: ChoiceLogprobs | None
    finish_reason: ChatFinishReason
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(Answer[Choice]):
    object: Literal["chat.completion"]
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


async def collect_chat(
    chunks: AsyncIterator[ChatCompletionChunk], *, with_logprobs: bool = False
) -> ChatCompletion:
    """One whole answer from the chunks of a request that does not stream.

    Args:
        with_logprobs: the request asks for them: an answer without tokens has empty lists.

    Raises:
        InternalError: the chunks ended before the answer did.
    """
    fields, choices = await collect(chunks)
    return ChatCompletion(
        object="chat.completion",
        choices=[_collect_choice(parts, with_logprobs) for parts in choices],
        **fields,
    )


def _collect_choice(parts: list[ChunkChoice], with_logprobs: bool) -> Choice:
    content = "".join(part.delta.content or "" for part in parts)
    reasoning = "".join(part.delta.reasoning_content or "" for part in parts)
    calls: dict[int, MessageToolCall] = {}
    for call in (call for part in parts for call in part.delta.tool_calls or ()):
        if call.id is not None:
            function = FunctionCall(name=call.function.name or "", arguments="")
            calls[call.index] = MessageToolCall(id=call.id, type="function", function=function)
        calls[call.index].function.arguments += call.function.arguments
    message = AssistantAnswer(
        role="assistant", content=content if content or not calls else None, refusal=None
    )
    if reasoning:
        message.reasoning_content = reasoning
    if calls:
        message.tool_calls = list(calls.values())
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    return Choice(
        message=message,
        logprobs=ChoiceLogprobs(
            content=[entry for part in logprobs for entry in part.content or ()], refusal=None
        )
        if logprobs or with_logprobs
        else None,
        **joined(parts),
    )
