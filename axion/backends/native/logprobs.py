"""Tokens' log probabilities in the two forms of OpenAI's API, and a prompt's also in vLLM's."""

from __future__ import annotations

from typing import Any

from axion.backends.native.answer import Answer, ShownToken
from axion.openai.answer import PromptLogprob, PromptLogprobs
from axion.openai.chat_answer import ChoiceLogprobs, TokenLogprob, TopLogprob
from axion.openai.completions import Logprobs
from axion.text.detokenizer import IncrementalDetokenizer
from axion.text.tokenizer import Tokenizer
from axion.types import TokenLogprobs

# What OpenAI reports for a probability of zero, which JSON's numbers cannot.
_LOWEST_LOGPROB = -9999.0


def chat_logprobs(tokenizer: Tokenizer, tokens: list[ShownToken]) -> ChoiceLogprobs:
    return ChoiceLogprobs(
        content=[
            TokenLogprob(
                **_entry(tokenizer, token.token_id, token.logprobs.logprob),
                top_logprobs=[
                    TopLogprob(**_entry(tokenizer, token_id, logprob))
                    for token_id, logprob in token.logprobs.top
                ],
            )
            for token in tokens
        ],
        refusal=None,
    )


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.id_to_token_bytes(token_id)
    return {
        # A part of a character is written as \xe2\x80, as OpenAI does.
        "token": data.decode(errors="backslashreplace"),
        "logprob": max(_LOWEST_LOGPROB, logprob),
        "bytes": list(data),
    }


def prompt_logprobs(tokenizer: Tokenizer, answer: Answer, num_top: int) -> PromptLogprobs:
    """Of a prompt, in vLLM's form; nothing comes before its first token."""
    entries: PromptLogprobs = [None]
    scored = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs, strict=True)
    for token_id, logprobs in scored:
        entry = {str(token_id): _ranked(tokenizer, token_id, logprobs.logprob, logprobs.rank)}
        for rank, (other_id, logprob) in enumerate(logprobs.top[:num_top], 1):
            entry[str(other_id)] = _ranked(tokenizer, other_id, logprob, rank)
        entries.append(entry)
    return entries


def _ranked(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int | None) -> PromptLogprob:
    return PromptLogprob(
        logprob=max(_LOWEST_LOGPROB, logprob),
        rank=rank,
        decoded_token=tokenizer.id_to_token_bytes(token_id).decode(errors="replace"),
    )


def echoed_logprobs(tokenizer: Tokenizer, answer: Answer, text: str, num_top: int) -> Logprobs:
    """Of a prompt whose text is `text`; nothing comes before its first token."""
    token_ids = answer.prompt_token_ids
    scores = [TokenLogprobs(entry.logprob, entry.top[:num_top]) for entry in answer.prompt_logprobs]
    detokenizer = IncrementalDetokenizer(tokenizer)
    offsets = [0]
    for token_id in token_ids:
        offsets.append(min(offsets[-1] + len(detokenizer.push((token_id,))), len(text)))
    shown = map(ShownToken, token_ids[1:], scores, offsets[1:])
    logprobs = text_logprobs(tokenizer, list(shown))
    return Logprobs(
        tokens=[_token_text(tokenizer, token_ids[0]), *logprobs.tokens],
        token_logprobs=[None, *logprobs.token_logprobs],
        top_logprobs=[None, *logprobs.top_logprobs],
        text_offset=[0, *logprobs.text_offset],
    )


def text_logprobs(tokenizer: Tokenizer, tokens: list[ShownToken], offset: int = 0) -> Logprobs:
    """Log probabilities of tokens of a text that begins at `offset`."""
    return Logprobs(
        tokens=[_token_text(tokenizer, token.token_id) for token in tokens],
        token_logprobs=[max(_LOWEST_LOGPROB, token.logprobs.logprob) for token in tokens],
        top_logprobs=[_text_top(tokenizer, token.token_id, token.logprobs) for token in tokens],
        text_offset=[offset + token.offset for token in tokens],
    )


def _text_top(tokenizer: Tokenizer, token_id: int, logprobs: TokenLogprobs) -> dict[str, float]:
    """The likeliest tokens and the chosen one; of two with the same text, the likelier."""
    top: dict[str, float] = {}
    for other_id, logprob in (*logprobs.top, (token_id, logprobs.logprob)):
        top.setdefault(_token_text(tokenizer, other_id), max(_LOWEST_LOGPROB, logprob))
    return top


def _token_text(tokenizer: Tokenizer, token_id: int) -> str:
    data = tokenizer.id_to_token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + data.decode(errors="backslashreplace")
