"""How the engine is to sample for a request."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from axion.backends.native.model import LoadedModel
from axion.backends.native.prompt import in_thread_if_long, too_long
from axion.errors import ContextLengthExceededError, InvalidRequestError
from axion.openai.common import GenerationRequest, sampling_params
from axion.types import MAX_SEED, SamplingParams


def fitted_params(
    model: LoadedModel,
    request: GenerationRequest,
    prompt_token_ids: list[int],
    *,
    default: int | None,
    param: str,
) -> SamplingParams:
    """How to sample, with a token limit that fits the context.

    Args:
        default: the limit if the request has none; None takes all that is left.
        param: the field that the prompt comes from.

    Raises:
        ContextLengthExceededError: prompt and answer do not fit.
        InvalidRequestError: a token id is outside the vocabulary, or the prompt has no tokens.
    """
    info = model.engine.info
    num_tokens, limit = len(prompt_token_ids), request.token_limit
    if not num_tokens:
        raise InvalidRequestError(f"{param} must not be empty: it has no tokens.", param=param)
    left = info.max_model_len - num_tokens
    if left < (limit != 0):
        raise too_long(model, str(num_tokens), param)
    if limit is not None and limit > left:
        raise ContextLengthExceededError(
            f"The context of this model has {info.max_model_len} tokens. The request asks for "
            f"{num_tokens + limit}: {num_tokens} in the prompt and {limit} for the answer. "
            f"Shorten the prompt, or ask for at most {left}.",
            param="max_tokens" if request.max_tokens else "max_completion_tokens",
        )
    if limit is None:
        limit = left if default is None else min(default, left)
    params = sampling_params(request, max_tokens=limit, defaults=model.defaults)
    for name, token_ids in (
        (param, prompt_token_ids),
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
        ("allowed_token_ids", params.allowed_token_ids),
    ):
        check_vocabulary(name, token_ids, info.vocab_size)
    return params


async def bad_words_token_ids(
    model: LoadedModel, request: GenerationRequest
) -> tuple[tuple[int, ...], ...]:
    """How the tokenizer writes what the answer must not say, by vLLM's rules.

    A word is written as at the beginning of a text, and where it is as many tokens of which the
    first is another, as behind a space too.

    Raises:
        InvalidRequestError: a word has no tokens.
    """
    words = request.bad_words or []

    def encode() -> tuple[tuple[int, ...], ...]:
        found: dict[tuple[int, ...], None] = {}
        for i, word in enumerate(words):
            alone, spaced = (
                tuple(model.tokenizer.encode(before + word.lstrip(), add_special_tokens=False))
                for before in ("", " ")
            )
            if not alone:
                raise InvalidRequestError(
                    f"bad_words[{i}] has no tokens: {word!r}.", param="bad_words"
                )
            found[alone] = None
            if len(spaced) == len(alone) and spaced[0] != alone[0]:
                found[spaced] = None
        return tuple(found)

    return await in_thread_if_long(model, sum(map(len, words)), encode)


def check_vocabulary(param: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Refuses token ids that the model does not have.

    Raises:
        InvalidRequestError: a token id is outside the vocabulary.
    """
    highest = max(token_ids, default=0)
    if highest >= vocab_size:
        raise InvalidRequestError(
            f"{param} has the token id {highest}, and the vocabulary of this model ends at "
            f"{vocab_size - 1}.",
            param=param,
        )


def seeded(params: SamplingParams, index: int) -> SamplingParams:
    """A stream of its own for each choice, the same in every run."""
    if params.seed is None or index == 0:
        return params
    seed = (params.seed + index + MAX_SEED + 1) % (2 * (MAX_SEED + 1)) - MAX_SEED - 1
    return msgspec.structs.replace(params, seed=seed)
