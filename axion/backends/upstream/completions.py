"""Answers to text completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from axion.backends.upstream.answer import Answer
from axion.backends.upstream.dialect import Dialect
from axion.backends.upstream.faults import Faults
from axion.backends.upstream.messages import Event, Logprobs, TextChoice, TextEvent
from axion.openai.completions import DEFAULT_MAX_TOKENS, CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered, DeliveredChoice


class TextAnswer(Answer[CompletionRequest, CompletionChunk]):
    path = "/completions"
    object = "text_completion"
    id_prefix = "cmpl"

    def __init__(
        self,
        dialect: Dialect,
        faults: Faults,
        served_name: str,
        request: CompletionRequest,
        request_id: str,
        delivered: Delivered | None,
    ) -> None:
        super().__init__(dialect, faults, served_name, request, request_id, delivered)
        self._num_chars: dict[int, int] = {}

    @property
    def _num_choices(self) -> int:
        return self._request.num_choices * len(self._request.prompts)

    def body(self) -> dict[str, Any] | None:
        body = super().body()
        if body is not None:
            # Servers differ in how much they generate where a request does not say.
            body.setdefault(self._dialect.name_of("max_tokens"), DEFAULT_MAX_TOKENS)
        return body

    def _go_on(self, body: dict[str, Any], choice: DeliveredChoice) -> None:
        prompt = self._request.prompts[0]
        if not isinstance(prompt, str):
            raise self._cannot("a prompt of token ids")
        if self._request.echo and self._request.logprobs is not None:
            raise self._cannot("the log probabilities of a prompt")
        body["prompt"] = choice.content if self._request.echo else prompt + choice.content
        body.pop("echo", None)
        body.setdefault(self._dialect.name_of("max_tokens"), DEFAULT_MAX_TOKENS)
        self._num_chars[0] = len(choice.content)

    def _decode(self, data: bytes) -> Event:
        return _decode_text(data)

    def _validate(self, fields: dict[str, Any]) -> CompletionChunk:
        return CompletionChunk.model_validate(fields)

    def _parts(self, choice: TextChoice) -> Iterator[dict[str, Any]]:
        text = choice.text or ""
        if self._request.return_token_ids and choice.prompt_token_ids is not None:
            yield {"text": "", "logprobs": None, "prompt_token_ids": choice.prompt_token_ids}
        given = choice.logprobs
        logprobs = None
        offset = self._num_chars.get(choice.index, 0)
        self._num_chars[choice.index] = offset + len(text)
        # MAX sends empty lists to whoever has not asked for any.
        if given is not None and (given.tokens or given.content):
            logprobs = _text_logprobs(given, offset)
        shown, told = self._shown(choice, text, logprobs)
        if shown or told:
            self._usage.num_chunks += 1
            yield {"text": shown, "logprobs": _joined(told) if told else None}

    def _finish(self, choice: TextChoice, reason: str) -> dict[str, Any]:
        fields = {
            "text": "",
            "logprobs": None,
            "finish_reason": reason if reason == "length" else "stop",
        }
        if choice.prompt_logprobs is not None:
            fields["prompt_logprobs"] = msgspec.to_builtins(choice.prompt_logprobs)
        return fields


def _joined(lists: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    return {name: [entry for one in lists for entry in one[name]] for name in lists[0]}


_decode_text = msgspec.json.Decoder(TextEvent).decode


def _text_logprobs(given: Logprobs, offset: int) -> dict[str, Any]:
    """The lists of text completions; some servers send a chat's form.

    Args:
        offset: where the chunk's text begins in the choice's text.
    """
    if given.content is not None:
        tokens = [entry.token for entry in given.content]
        chosen: list[float | None] = [entry.logprob for entry in given.content]
        top: list[dict[str, float] | None] = [
            {other.token: other.logprob for other in entry.top_logprobs or ()}
            for entry in given.content
        ]
    else:
        tokens = given.tokens or []
        chosen = given.token_logprobs or [None] * len(tokens)
        top = given.top_logprobs or [None] * len(tokens)
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}
