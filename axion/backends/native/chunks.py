"""What the chunks of chats and of text completions share."""

from __future__ import annotations

import time
from typing import Any

from axion.backends.native.answer import Answer
from axion.backends.native.model import LoadedModel
from axion.openai.common import GenerationRequest, PromptTokensDetails, Usage
from axion.openai.completions import CompletionFinishReason
from axion.types import FinishReason


def shared_fields(
    model: LoadedModel, request: GenerationRequest, answer_id: str, kind: str
) -> dict[str, Any]:
    """The fields that are the same in every chunk of an answer."""
    shared = {
        "id": answer_id,
        "object": kind,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": None,
    }
    return shared | {"usage": None} if request.include_usage and request.stream else shared


def usage_of(answers: list[Answer], num_choices: int) -> Usage:
    """What the request took; a prompt counts once, however many answers it has."""
    prompts = answers[::num_choices]
    num_prompt_tokens = sum(len(answer.prompt_token_ids) for answer in prompts)
    num_completion_tokens = sum(answer.num_tokens for answer in answers)
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(answer.num_cached_tokens for answer in prompts)
        ),
    )


def usage_so_far(request: GenerationRequest, answers: list[Answer]) -> dict[str, Any]:
    """The field of a chunk that a request with `continuous_usage_stats` wants."""
    if not request.usage_in_every_chunk:
        return {}
    return {"usage": usage_of(answers, request.num_choices)}


def token_ids_field(request: GenerationRequest, answer: Answer) -> dict[str, Any]:
    """The field of a choice that a request with `return_token_ids` wants."""
    return {"token_ids": answer.take_token_ids()} if request.return_token_ids else {}


def finish_reason_of(reason: FinishReason) -> CompletionFinishReason:
    return "length" if reason is FinishReason.LENGTH else "stop"
