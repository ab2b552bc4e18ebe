"""Fields by which other servers know something: what to send here in their place."""

from __future__ import annotations

from typing import Final

_TOKEN_IDS = "send return_token_ids, and logprobs, which has each token's bytes"
_ONE_GRAMMAR = "there is one implementation of structured outputs, and it has no options"
_PREFIX_CACHE = "the prefix cache is automatic"
_SAMPLING = "send temperature, top_p, top_k or min_p"

FIELDS_ELSEWHERE: Final = {
    # vLLM
    "guided_decoding_backend": _ONE_GRAMMAR,
    "guided_whitespace_pattern": _ONE_GRAMMAR,
    "length_penalty": "there is no beam search",
    "mm_processor_kwargs": "this model takes text only",
    "prompt_embeds": "send a text or token ids",
    "request_id": "send the header X-Request-ID",
    "return_tokens_as_token_ids": _TOKEN_IDS,
    "spaces_between_special_tokens": "the tokenizer's own spaces are kept",
    "truncation_side": "truncate_prompt_tokens keeps the last tokens",
    "use_beam_search": "n with temperature gives several answers",
    # llama.cpp
    "cache_prompt": _PREFIX_CACHE,
    "grammar": "send structured_outputs.grammar",
    "id_slot": _PREFIX_CACHE,
    "json_schema": "send structured_outputs.json",
    "mirostat": _SAMPLING,
    "n_predict": "send max_tokens",
    "n_probs": "send logprobs",
    "repeat_penalty": "send repetition_penalty",
    "samplers": _SAMPLING,
    "typical_p": _SAMPLING,
    # Ollama
    "format": "send response_format, or structured_outputs.json",
    "keep_alive": "the model stays loaded while the server runs",
    "num_ctx": "the server's setting MAX_SEQ_LEN is the context's length",
    "num_predict": "send max_tokens",
    "options": "send what is in it as fields of the request, and max_tokens for num_predict",
}

CHAT_FIELDS_ELSEWHERE: Final = FIELDS_ELSEWHERE | {
    # vLLM
    "chat_template": "the model's own is used; chat_template_kwargs has its variables",
    "documents": "chat_template_kwargs.documents reaches a chat template that reads it",
    "echo": "only text completions have it",
    "include_reasoning": "reasoning is always told apart; reasoning_effort: none switches it off",
    "thinking_token_budget": "reasoning_effort says how much the model is to think",
    # Ollama
    "think": "send reasoning_effort",
}

TOKENIZE_FIELDS_ELSEWHERE: Final = {
    # llama.cpp
    "content": "send prompt",
    "with_pieces": "send return_token_strs",
}
