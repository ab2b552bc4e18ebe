"""Answers to chats."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import msgspec

from axion.backends.upstream.answer import Answer
from axion.backends.upstream.dialect import Dialect
from axion.backends.upstream.faults import Faults
from axion.backends.upstream.messages import (
    Call,
    ChatChoice,
    ChatEvent,
    Choice,
    Event,
    PromptLogprobs,
    TokenLogprob,
)
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.delivered import Delivered, DeliveredChoice


class ChatAnswer(Answer[ChatCompletionRequest, ChatCompletionChunk]):
    path = "/chat/completions"
    object = "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def __init__(
        self,
        dialect: Dialect,
        faults: Faults,
        served_name: str,
        request: ChatCompletionRequest,
        request_id: str,
        delivered: Delivered | None,
    ) -> None:
        super().__init__(dialect, faults, served_name, request, request_id, delivered)
        self._calls: dict[int, set[int]] = {}
        self._num_reasoning_chunks = 0
        self._of_prompt: dict[str, Any] = {}
        self._prompt_logprobs: PromptLogprobs | None = None

    def _go_on(self, body: dict[str, Any], choice: DeliveredChoice) -> None:
        if self._dialect.capabilities.missing(["continue_final_message"]):
            raise self._cannot("an answer of a chat")
        if self._request.requires_call:
            raise self._cannot("an answer that follows a grammar")
        if self._request.continue_final_message:
            last = body["messages"][-1]
            last["content"] = self._request.final_text + choice.content
        else:
            body["messages"].append({"role": "assistant", "content": choice.content})
        body |= {"continue_final_message": True, "add_generation_prompt": False}

    def _decode(self, data: bytes) -> Event:
        return _decode_chat(data)

    def _keep(self, message: ChatEvent) -> None:
        super()._keep(message)
        if self._request.return_token_ids:
            choices = message.choices or ()
            told = [message.prompt_token_ids, *(choice.prompt_token_ids for choice in choices)]
            if token_ids := next(filter(None, told), None):
                self._of_prompt["prompt_token_ids"] = token_ids
        self._prompt_logprobs = message.prompt_logprobs

    def _validate(self, fields: dict[str, Any]) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk.model_validate(fields | self._of_prompt)
        self._of_prompt.clear()  # the first chunk has it
        return chunk

    def _parts(self, choice: ChatChoice) -> Iterator[dict[str, Any]]:
        if choice.index not in self._began:
            self._began.add(choice.index)
            yield {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        delta: dict[str, Any] = {}
        given = choice.delta or choice.message
        content = given.content if given is not None else None
        entries = choice.logprobs.content if choice.logprobs is not None else None
        text, told = self._shown(choice, content or "", entries)
        if text:
            delta["content"] = text
        if given is not None:
            if reasoning := given.reasoning_content or given.reasoning:
                delta["reasoning_content"] = reasoning
                self._num_reasoning_chunks += 1
            if given.tool_calls:
                calls = self._calls.setdefault(choice.index, set())
                delta["tool_calls"] = [
                    _call(call, place, calls) for place, call in enumerate(given.tool_calls)
                ]
        logprobs = [entry for entries in told for entry in entries]
        if delta or logprobs:
            self._usage.num_chunks += 1
            yield {"delta": delta, "logprobs": _chat_logprobs(logprobs) if logprobs else None}

    def _finish(self, choice: Choice, reason: str) -> dict[str, Any]:
        if reason != "length":
            reason = "tool_calls" if self._calls.get(choice.index) else "stop"
        return {"delta": {}, "logprobs": None, "finish_reason": reason}

    def _usage_field(self) -> dict[str, Any]:
        told = self._usage.told
        num_reasoning = told.num_reasoning if told is not None else None
        if num_reasoning is None:
            num_reasoning = self._num_reasoning_chunks
        details = {"reasoning_tokens": num_reasoning}
        return super()._usage_field() | {"completion_tokens_details": details}

    def _of_answer(self) -> dict[str, Any]:
        if self._prompt_logprobs is None:
            return super()._of_answer()
        scores = msgspec.to_builtins(self._prompt_logprobs)
        return super()._of_answer() | {"prompt_logprobs": scores}


_decode_chat = msgspec.json.Decoder(ChatEvent).decode


def _call(call: Call, place: int, begun: set[int]) -> dict[str, Any]:
    """A part of a call, of which the first one alone has the id and the name."""
    index = call.index if call.index is not None else place
    arguments = (call.function and call.function.arguments) or ""
    if index in begun:
        return {"index": index, "function": {"arguments": arguments}}
    begun.add(index)
    return {
        "index": index,
        "id": call.id or f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": (call.function and call.function.name) or "", "arguments": arguments},
    }


def _chat_logprobs(content: list[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": entry.token,
                "logprob": entry.logprob,
                "bytes": entry.bytes,
                "top_logprobs": [msgspec.structs.asdict(top) for top in entry.top_logprobs or ()],
            }
            for entry in content
        ],
        "refusal": None,
    }
