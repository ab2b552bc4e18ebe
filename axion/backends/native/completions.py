"""Text completions: prompts to the engine, its pieces to chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from axion.backends.native.answer import Answer
from axion.backends.native.chunks import (
    finish_reason_of,
    shared_fields,
    token_ids_field,
    usage_of,
    usage_so_far,
)
from axion.backends.native.grammar import constraint_grammar
from axion.backends.native.logprobs import echoed_logprobs, prompt_logprobs, text_logprobs
from axion.backends.native.model import LoadedModel
from axion.backends.native.prompt import in_thread_if_long, num_kept_tokens, text_prompt
from axion.backends.native.sampling import bad_words_token_ids, fitted_params, seeded
from axion.backends.native.sequences import run_sequences, take_over
from axion.errors import CannotContinueError
from axion.openai.common import stop_reason_field
from axion.openai.completions import (
    DEFAULT_MAX_TOKENS,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionFinishReason,
    CompletionRequest,
    Logprobs,
)
from axion.openai.delivered import Delivered, DeliveredChoice


async def stream_completion(
    model: LoadedModel,
    request: CompletionRequest,
    request_id: str,
    *,
    delivered: Delivered | None = None,
) -> AsyncGenerator[CompletionChunk, None]:
    """As `InferenceBackend.complete`."""
    before = {} if delivered is None else delivered.choices
    answers, echoes = await _begin(model, request, before)
    shared = shared_fields(model, request, f"cmpl-{request_id}", "text_completion")

    def chunk(
        index: int,
        text: str,
        logprobs: Logprobs | None = None,
        finish: CompletionFinishReason | None = None,
        stop_reason: int | str | None = None,
        **of_prompt: Any,
    ) -> CompletionChunk:
        answer = answers[index]
        if request.return_token_ids and index not in began:
            began.add(index)
            of_prompt["prompt_token_ids"] = answer.prompt_token_ids
        choice = CompletionChunkChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=finish,
            **stop_reason_field(stop_reason),
            **token_ids_field(request, answer),
            **of_prompt,
        )
        return CompletionChunk(**shared | usage_so_far(request, answers), choices=[choice])

    began: set[int] = set()
    to_echo = set(range(len(answers))) - set(before) if request.echo else set()
    running = run_sequences(model.engine, request, request_id, answers, before)
    async with aclosing(running) as pieces:
        async for index, piece in pieces:
            answer, echo = answers[index], echoes[index]
            if not answer.num_tokens and piece.finish_reason is None:
                continue  # its prompt is being scored
            if index in to_echo:
                to_echo.remove(index)
                logprobs = None
                if request.logprobs is not None:
                    logprobs = echoed_logprobs(model.tokenizer, answer, echo, request.logprobs)
                yield chunk(index, echo, logprobs)
            if piece.text or piece.tokens:
                offset = len(echo) if request.echo else 0
                logprobs = text_logprobs(model.tokenizer, piece.tokens, offset)
                yield chunk(index, piece.text, logprobs if piece.tokens else None)
            if piece.finish_reason is not None:
                finish = finish_reason_of(piece.finish_reason)
                scores = {}
                if (num_top := request.prompt_logprobs) is not None:
                    scores["prompt_logprobs"] = prompt_logprobs(model.tokenizer, answer, num_top)
                yield chunk(index, "", None, finish, piece.stop_reason, **scores)
    if request.include_usage:
        usage = usage_of(answers, request.num_choices)
        yield CompletionChunk(**shared | {"choices": [], "usage": usage})


async def _begin(
    model: LoadedModel, request: CompletionRequest, before: Mapping[int, DeliveredChoice]
) -> tuple[list[Answer], list[str]]:
    """The answers, prompt by prompt, and the text that each of them echoes.

    Args:
        before: what another engine gave of the answers, by index.

    Raises:
        InvalidRequestError: something in the request cannot be honoured.
        ContextLengthExceededError: a prompt and its answer do not fit.
        CannotContinueError: an answer cannot go on where another engine's has broken off.
    """
    grammar = await constraint_grammar(model, request)
    bad_words = await bad_words_token_ids(model, request)
    answers: list[Answer] = []
    echoes: list[str] = []
    encode_one = partial(
        text_prompt,
        model,
        add_special_tokens=request.add_special_tokens is not False,
        num_kept=num_kept_tokens(model, request),
    )

    def encode() -> list[list[int]]:
        return [encode_one(prompt) for prompt in request.prompts]

    encoded = await in_thread_if_long(model, sum(map(len, request.prompts)), encode)
    for prompt, prompt_token_ids in zip(request.prompts, encoded, strict=True):
        params = fitted_params(
            model, request, prompt_token_ids, default=DEFAULT_MAX_TOKENS, param="prompt"
        )
        params = msgspec.structs.replace(params, grammar=grammar, bad_words_token_ids=bad_words)
        echo = ""
        if request.echo:
            if isinstance(prompt, str) and request.truncate_prompt_tokens is None:
                echo = prompt
            else:
                echo = model.tokenizer.decode(prompt_token_ids)
        for i in range(request.num_choices):
            choice = before.get(len(answers))
            own_params = seeded(params, i)
            if choice is not None:  # it came with the echo
                own_params = msgspec.structs.replace(own_params, prompt_logprobs=None)
            answer = Answer(
                model.tokenizer,
                prompt_token_ids,
                own_params,
                skip_special_tokens=params.skip_special_tokens,
            )
            answers.append(answer)
            echoes.append(echo)
            if choice is not None:
                text = choice.content.removeprefix(echo)
                if len(text) + len(echo) != len(choice.content):
                    raise CannotContinueError("The answer so far does not begin with the prompt.")
                await take_over(model, answer, dataclasses.replace(choice, content=text), text)
    return answers, echoes
