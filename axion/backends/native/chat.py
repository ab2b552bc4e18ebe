"""Chats: the prompt to the engine, its pieces to chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from axion.backends.native.answer import Answer, ShownToken
from axion.backends.native.chunks import (
    finish_reason_of,
    shared_fields,
    token_ids_field,
    usage_of,
    usage_so_far,
)
from axion.backends.native.grammar import chat_grammar
from axion.backends.native.logprobs import chat_logprobs, prompt_logprobs
from axion.backends.native.model import LoadedModel
from axion.backends.native.prompt import chat_prompt
from axion.backends.native.sampling import bad_words_token_ids, fitted_params, seeded
from axion.backends.native.sequences import run_sequences, take_over
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import (
    ChatCompletionChunk,
    ChatFinishReason,
    ChunkChoice,
    Delta,
    DeltaFunction,
    DeltaToolCall,
)
from axion.openai.common import CompletionTokensDetails, stop_reason_field
from axion.openai.delivered import Delivered, DeliveredChoice
from axion.text.answer_format import AnswerFormat, answer_format
from axion.text.events import ArgumentsDelta, CallStart, Event, ReasoningDelta, TextDelta
from axion.text.tokenizer import Tokenizer
from axion.text.tool_calls import WrittenCall
from axion.types import SamplingParams

# Enough to hold the tag at the end of a prompt that opens the model's reasoning.
_TAIL_TOKENS = 32


class ChatPrompt(NamedTuple):
    """What the engine gets of a chat request."""

    token_ids: list[int]
    params: SamplingParams


async def prepare_chat(model: LoadedModel, request: ChatCompletionRequest) -> ChatPrompt:
    """The part of a chat that comes before the engine.

    Raises:
        InvalidRequestError: something in the request cannot be honoured.
        ContextLengthExceededError: prompt and answer do not fit.
    """
    token_ids = await asyncio.to_thread(chat_prompt, model, request)
    params = fitted_params(model, request, token_ids, default=None, param="messages")
    params = msgspec.structs.replace(
        params,
        grammar=await chat_grammar(model, request),
        bad_words_token_ids=await bad_words_token_ids(model, request),
    )
    return ChatPrompt(token_ids, params)


async def stream_chat(
    model: LoadedModel,
    request: ChatCompletionRequest,
    request_id: str,
    *,
    prompt: ChatPrompt | None = None,
    delivered: Delivered | None = None,
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """As `InferenceBackend.chat`; with what `prepare_chat` gave, if that has been done."""
    before = {} if delivered is None else delivered.choices
    prompt = prompt or await prepare_chat(model, request)
    answers = await _begin(model, request, prompt, before)
    of_prompt = {"prompt_token_ids": prompt.token_ids} if request.return_token_ids else {}
    shared = shared_fields(model, request, f"chatcmpl-{request_id}", "chat.completion.chunk")

    def chunk(
        index: int,
        delta: Delta,
        tokens: list[ShownToken],
        finish: ChatFinishReason | None = None,
        stop_reason: int | str | None = None,
    ) -> ChatCompletionChunk:
        logprobs = chat_logprobs(model.tokenizer, tokens) if tokens else None
        choice = ChunkChoice(
            index=index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=finish,
            **stop_reason_field(stop_reason),
            **token_ids_field(request, answers[index]),
        )
        fields = shared | usage_so_far(request, answers) | of_prompt
        of_prompt.clear()  # the first chunk has it
        return ChatCompletionChunk(**fields, choices=[choice])

    began = set(before)
    called = {i for i, choice in before.items() if choice.calls}
    running = run_sequences(model.engine, request, request_id, answers, before)
    async with aclosing(running) as pieces:
        async for index, piece in pieces:
            if index not in began:
                began.add(index)
                yield chunk(index, Delta(role="assistant", content=""), [])
            deltas = _deltas(piece.events)
            if not deltas and piece.tokens:
                deltas = [Delta()]
            for i, delta in enumerate(deltas):
                if delta.tool_calls:
                    called.add(index)
                yield chunk(index, delta, [] if i else piece.tokens)
            if piece.finish_reason is not None:
                finish: ChatFinishReason = finish_reason_of(piece.finish_reason)
                if finish == "stop" and index in called:
                    finish = "tool_calls"
                yield chunk(index, Delta(), [], finish, piece.stop_reason)
    if request.include_usage:
        usage = usage_of(answers, request.num_choices)
        usage.completion_tokens_details = CompletionTokensDetails(
            reasoning_tokens=sum(answer.num_reasoning_tokens for answer in answers)
        )
        last: dict[str, Any] = {"choices": [], "usage": usage}
        if (num_top := request.num_prompt_logprobs) is not None:
            last["prompt_logprobs"] = prompt_logprobs(model.tokenizer, answers[0], num_top)
        yield ChatCompletionChunk(**shared | last)


async def _begin(
    model: LoadedModel,
    request: ChatCompletionRequest,
    prompt: ChatPrompt,
    before: Mapping[int, DeliveredChoice],
) -> list[Answer]:
    """The choices, those that another engine began taken over.

    Args:
        before: what another engine gave of the choices, by index.

    Raises:
        CannotContinueError: a choice cannot go on where another engine's has broken off.
    """
    prompt_token_ids, params = prompt
    assert model.chat_template is not None
    written = answer_format(model.chat_template.source(with_tools=request.uses_tools))
    opened = _opens_reasoning(model.tokenizer, request, written, prompt_token_ids)
    functions = request.callable_functions
    visible_token_ids = _special_token_ids(model.tokenizer, written.markers(functions))
    answers = [
        Answer(
            model.tokenizer,
            prompt_token_ids,
            choice_params,
            parser=written.parser(functions, opened=opened),
            single_call=request.max_one_call,
            skip_special_tokens=params.skip_special_tokens,
            visible_token_ids=visible_token_ids,
        )
        for choice_params in _params_of_choices(params, request.num_choices)
    ]
    for i, choice in before.items():
        calls = [WrittenCall(call.name, call.arguments, call.offset) for call in choice.calls]
        text = written.write(choice.reasoning, choice.content, calls, opened=opened)
        await take_over(model, answers[i], choice, text)
    return answers


def _params_of_choices(params: SamplingParams, num_choices: int) -> list[SamplingParams]:
    """One of the choices scores the prompt for all."""
    unscored = msgspec.structs.replace(params, prompt_logprobs=None)
    return [params, *(seeded(unscored, i) for i in range(1, num_choices))]


def _deltas(events: list[Event]) -> list[Delta]:
    """One for each event; a call begins with its name, and its arguments follow."""
    deltas: list[Delta] = []
    for event in events:
        match event:
            case TextDelta(text):
                deltas.append(Delta(content=text))
            case ReasoningDelta(text):
                deltas.append(Delta(reasoning_content=text))
            case CallStart(index, id, name):
                function = DeltaFunction(name=name, arguments="")
                call = DeltaToolCall(index=index, id=id, type="function", function=function)
                deltas.append(Delta(tool_calls=[call]))
            case ArgumentsDelta(index, text):
                call = DeltaToolCall(index=index, function=DeltaFunction(arguments=text))
                deltas.append(Delta(tool_calls=[call]))
    return deltas


def _opens_reasoning(
    tokenizer: Tokenizer,
    request: ChatCompletionRequest,
    written: AnswerFormat,
    prompt_token_ids: list[int],
) -> bool:
    """Whether the answer goes on with reasoning that the prompt has begun."""
    if written.reasoning is None:
        return False
    if request.continue_final_message:
        return written.reasoning.left_open_in(request.final_text)
    tail = prompt_token_ids[-_TAIL_TOKENS:]
    return written.reasoning.opened_by(tokenizer.decode(tail, skip_special_tokens=False))


def _special_token_ids(tokenizer: Tokenizer, tokens: Collection[str]) -> frozenset[int]:
    ids = map(tokenizer.token_to_id, tokens)
    return frozenset(id for id in ids if id in tokenizer.special_token_ids and id is not None)
