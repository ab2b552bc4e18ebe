"""Ways to a server: one that remembers, one on which a feature of requests is lost or refused."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from typing import Any, Literal

import httpx

# What ignoring a limit comes to, without filling the context.
_DEFAULT_MAX_TOKENS = 40


def without(feature: str, body: dict[str, Any]) -> dict[str, Any]:
    """A request as a server reads it that does not know the feature."""
    body = copy.deepcopy(body)
    match feature.split("."):
        case ["max_tokens"]:
            if body.pop("max_tokens", None) or body.pop("max_completion_tokens", None):
                body["max_tokens"] = _DEFAULT_MAX_TOKENS
        case ["seed"]:
            if body.get("seed"):
                del body["seed"]
        case ["seed", "0"]:
            if body.get("seed") == 0:
                del body["seed"]
        case ["logprobs"]:
            body.pop("logprobs", None)
            body.pop("top_logprobs", None)
        case ["tools"]:
            body.pop("tools", None)
            body.pop("tool_choice", None)
        case ["tools", "strict"]:
            for tool in body.get("tools", ()):
                tool["function"].pop("strict", None)
        case ["tool_choice", word]:
            choice = body.get("tool_choice")
            kind = choice.get("type") if isinstance(choice, dict) else choice
            if kind == {"named": "function"}.get(word, word):
                del body["tool_choice"]
        case ["response_format", "completions"]:
            if "prompt" in body:
                body.pop("response_format", None)
        case ["response_format", kind]:
            if body.get("response_format", {}).get("type") == kind:
                del body["response_format"]
        case ["structured_outputs", kind]:
            if kind in body.get("structured_outputs", {}):
                del body["structured_outputs"]
        case ["stream_options", name]:
            body.get("stream_options", {}).pop(name, None)
        case ["messages", name]:
            for message in body.get("messages", ()):
                message.pop(name, None)
        case ["prompt", "token_ids"]:
            if isinstance(body.get("prompt"), list) and isinstance(body["prompt"][0], int):
                body["prompt"] = str(body["prompt"])
        case ["prompt", "list"]:
            if isinstance(body.get("prompt"), list) and isinstance(body["prompt"][0], str):
                body["prompt"] = body["prompt"][0]
        case ["echo", "logprobs"]:
            if body.get("echo"):
                body.pop("logprobs", None)
        case ["continue_final_message"]:
            if body.pop("continue_final_message", None):
                body.pop("add_generation_prompt", None)
        case ["best_of"]:
            body.pop("best_of", None)
        case [name]:
            body.pop(name, None)
    return body


class Record(httpx.AsyncHTTPTransport):
    """A way to a server that remembers its answers: most of what is asked about a feature is asked
    about the others as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[tuple[object, ...], asyncio.Task[httpx.Response]] = {}

    async def answer(self, request: httpx.Request, times: int) -> httpx.Response:
        """What the server answers to who has asked this so many times before."""
        key = request.method, request.url.path, request.content, times
        if key not in self._answers:
            self._answers[key] = asyncio.create_task(self._ask(request))
        known = await self._answers[key]
        return httpx.Response(known.status_code, headers=known.headers, content=known.content)

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        response = await self.handle_async_request(request)
        try:
            await response.aread()
        finally:
            await response.aclose()
        return response


class LossyTransport(httpx.AsyncBaseTransport):
    """Args:
    how: whether the feature is dropped, or a request that has it is refused; None if it is neither.
    """

    def __init__(
        self, record: Record, feature: str, how: Literal["dropped", "refused"] | None
    ) -> None:
        self._record = record
        self._feature = feature
        self._how = how
        self._asked: Counter[tuple[object, ...]] = Counter()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        if self._how is not None and content:
            body = json.loads(content)
            kept = without(self._feature, body)
            if self._how == "refused" and kept != body:
                message = f"{self._feature.split('.')[0]} is not supported"
                error = {"message": message, "type": "invalid_request_error", "param": None}
                return httpx.Response(400, json={"error": error})
            headers = {k: v for k, v in request.headers.items() if k != "content-length"}
            lost = httpx.Request(request.method, request.url, headers=headers, json=kept)
            lost.extensions = request.extensions
            request = lost
        key = request.method, request.url.path, request.content
        self._asked[key] += 1
        return await self._record.answer(request, self._asked[key])
