"""What decides an answer, for the response cache."""

from __future__ import annotations

import hashlib

import msgspec

from axion.backends.native.chat import ChatPrompt
from axion.backends.native.model import LoadedModel
from axion.openai.chat import ChatCompletionRequest

# Fields of a chat request without an effect on the answer.
NO_EFFECT = {
    *("stream", "stream_options", "priority", "user", "metadata", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "service_tier", "store", "modalities"),
}
# What the cache's key leaves out: those, and what the prompt's tokens and the sampling parameters
# hold already.
_NOT_IN_KEY = NO_EFFECT | {
    *("model", "messages", "chat_template_kwargs", "add_generation_prompt"),
    *("max_tokens", "max_completion_tokens", "min_tokens"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "logit_bias", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "stop", "stop_token_ids", "ignore_eos"),
    *("truncate_prompt_tokens", "allowed_token_ids", "bad_words", "prompt_logprobs"),
    *("include_stop_str_in_output", "skip_special_tokens", "logprobs", "top_logprobs", "n"),
    *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice"),
    "guided_grammar",
}


def cache_key(model: LoadedModel, request: ChatCompletionRequest, prompt: ChatPrompt) -> bytes:
    """Digest of all that decides the answer, and the salt that keeps tenants apart."""
    params = prompt.params
    if params.temperature == 0:  # nothing is drawn
        params = msgspec.structs.replace(params, seed=None, top_k=0, top_p=1.0, min_p=0.0)
    parts = (
        model.fingerprint,
        model.name,
        prompt.token_ids,
        msgspec.structs.asdict(params) | {"logit_bias": sorted(params.logit_bias.items())},
        request.num_choices,
        request.model_dump(exclude_none=True, exclude=_NOT_IN_KEY),
    )
    return hashlib.blake2b(msgspec.json.encode(parts, order="deterministic")).digest()


def reads_clock(model: LoadedModel, request: ChatCompletionRequest) -> bool:
    """Whether the same messages may be another prompt tomorrow."""
    template = model.chat_template
    return template is None or "strftime_now" in template.source(with_tools=request.uses_tools)
