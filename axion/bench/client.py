"""One server, asked over HTTP, with the time of every chunk."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from axion.backends.events import EventReader
from axion.backends.http import HttpClient, HttpResponse
from axion.bench.report import Sample
from axion.bench.workload import Planned, Prompts
from axion.errors import AxionError

_MAX_ERROR_BYTES = 64 * 1024
_SAMPLE_WORDS = (8, 208)


class BenchError(AxionError):
    """The server cannot be measured: it is not there, or refuses what is asked."""


class Target:
    """A model of a server.

    Args:
        url: with or without the `/v1` of the API.
        model: None: the first one that the server lists.
        chat: `/chat/completions`, else `/completions`.
        extra: fields that are added to every request.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        chat: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else None
        try:
            self._client = HttpClient(url, headers=headers)
        except ValueError as error:
            raise BenchError(f"{url!r} cannot be asked: {error}.") from None
        self.url = url
        self.model = model or ""
        self._path = urlsplit(url).path.rstrip("/") or "/v1"
        self._chat = chat
        self._extra = dict(extra or {})
        self.prompts = Prompts()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; requests in them fail."""
        await self._client.close()
        await asyncio.sleep(0)

    async def prepare(self) -> None:
        """Find the model, whether it can be kept from ending early, and how long its words are.

        Raises:
            BenchError: the server does not answer as it must.
        """
        if not self.model:
            listed = await self.get_json(f"{self._path}/models")
            models = listed.get("data")
            if not isinstance(models, list) or not models:
                raise BenchError(f"{self.url} lists no model. Name one with --model.")
            self.model = str(models[0]["id"])
        if "ignore_eos" not in self._extra:
            tried = await self.ask(Planned(0, 1, 1, 0, 0), extra={"ignore_eos": True})
            if tried.error is None:
                self._extra["ignore_eos"] = True
        counts = []
        for num_words in _SAMPLE_WORDS:
            sample = await self.ask(Planned(0, num_words, 1, 0, num_words))
            if sample.error is not None:
                raise BenchError(f"{self.url} does not serve {self.model}: {sample.error}")
            counts.append(sample.prompt_tokens)
        if not all(counts):
            raise BenchError(
                f"{self.url} does not tell the usage of streams (stream_options.include_usage), "
                "without which nothing can be counted."
            )
        few, many = _SAMPLE_WORDS
        per_word = max((counts[1] - counts[0]) / (many - few), 0.01)
        self.prompts = Prompts(max(0.0, counts[0] - few * per_word), per_word)

    @property
    def keeps_length(self) -> bool:
        """Whether answers are as long as is asked, whatever the model would like."""
        return bool(self._extra.get("ignore_eos"))

    async def ask(
        self,
        planned: Planned,
        *,
        begin: float | None = None,
        due: float = 0.0,
        leave_after: int | None = None,
        extra: Mapping[str, Any] | None = None,
        prefix_seed: int = 0,
    ) -> Sample:
        """Send a request and read its answer; never raises for what the server does.

        Args:
            begin: the run's beginning, `time.perf_counter()`.
            due: when it was to be sent, in seconds from `begin`.
            leave_after: hang up after so many chunks with tokens.
        """
        zero = time.perf_counter() if begin is None else begin + due
        sample = Sample(kind=planned.kind, start=due)
        text = self.prompts.text(planned, prefix_seed)
        prompt = (
            {"messages": [{"role": "user", "content": text}]} if self._chat else {"prompt": text}
        )
        body = {
            "model": self.model,
            **prompt,
            "max_tokens": planned.output_len,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
            **(extra or {}),
        }
        path = f"{self._path}/{'chat/completions' if self._chat else 'completions'}"
        try:
            async with self._client.request("POST", path, json.dumps(body).encode()) as response:
                await self._read(response, sample, zero, leave_after)
        except (OSError, TimeoutError, ValueError) as error:
            sample.error = str(error) or type(error).__name__
        sample.latency = time.perf_counter() - zero
        return sample

    async def _read(
        self, response: HttpResponse, sample: Sample, zero: float, leave_after: int | None
    ) -> None:
        if response.status != 200:
            raw = await response.read_all(_MAX_ERROR_BYTES)
            sample.error = f"{response.status}: {_message(raw)}"
            return
        reader = EventReader()
        done = finished = False
        while data := await response.read():
            now = time.perf_counter() - zero
            for event in reader.push(data):
                if event.data == b"[DONE]":
                    done = True
                    response.ends_soon = True
                    continue
                chunk = json.loads(event.data)
                if error := chunk.get("error"):
                    sample.error = _message(event.data) if isinstance(error, dict) else str(error)
                    return
                finished |= any(c.get("finish_reason") for c in chunk.get("choices") or ())
                if _has_tokens(chunk):
                    sample.chunks.append(now)
                if usage := chunk.get("usage"):
                    sample.prompt_tokens = usage.get("prompt_tokens") or 0
                    sample.output_tokens = usage.get("completion_tokens") or 0
                    details = usage.get("prompt_tokens_details") or {}
                    sample.cached_tokens = details.get("cached_tokens") or 0
            if sample.ttft is None and sample.chunks:
                sample.ttft = sample.chunks[0]
            if leave_after is not None and len(sample.chunks) >= leave_after:
                sample.left = True
                return
            if done:
                break
        if not done and not finished:  # transformers' server sends no [DONE]
            sample.error = "the answer ended before its finish reason"

    async def get_text(self, path: str) -> str:
        """What a GET answers.

        Raises:
            BenchError: not 200, or no answer.
        """
        try:
            async with asyncio.timeout(30), self._client.request("GET", path) as response:
                raw = await response.read_all(16 * 1024 * 1024)
        except (OSError, TimeoutError) as error:
            raise BenchError(
                f"There is no server at {self.url} ({type(error).__name__})."
            ) from None
        if response.status != 200:
            raise BenchError(f"{path} of {self.url} answered {response.status}: {_message(raw)}")
        return raw.decode(errors="replace")

    async def get_json(self, path: str) -> dict[str, Any]:
        try:
            value = json.loads(await self.get_text(path))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise BenchError(f"What answers at {self.url} does not speak the OpenAI API.")
        return value


def _has_tokens(chunk: dict[str, Any]) -> bool:
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        said = (
            choice.get("text"),
            delta.get("content"),
            delta.get("reasoning_content"),
            delta.get("reasoning"),
            delta.get("tool_calls"),
        )
        if any(said):
            return True
    return False


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace").strip() or "no explanation"
