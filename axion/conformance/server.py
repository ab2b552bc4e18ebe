"""The server under test, and its answers as far as the checks look at them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from axion.errors import AxionError

# An engine may compile something for a request's field when it first meets it.
ANSWER_TIMEOUT_S = 180.0
_CONNECT_TIMEOUT_S = 10.0
_BUSY = (429, 503)
_MAX_BUSY_TRIES = 20
_BUSY_WAIT_S = 0.5
# What is checked is the engine, not what a cache in front of it remembers.
_HEADERS = {"cache-control": "no-cache, no-store"}


class UnreachableError(AxionError):
    """There is no server at the URL, or it lets nobody in."""


class RefusedError(Exception):
    """The server answered 4xx, or 501.

    Attributes:
        param: the field that the error names, if it does.
    """

    def __init__(self, status: int, message: str, param: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.param = param


class FaultError(Exception):
    """The server failed, or what it answered is not an answer of the API."""


class GoneError(FaultError):
    """The connection broke or could not be made."""


@dataclass
class Choice:
    """One choice of an answer.

    Attributes:
        text: reasoning and content, in this order.
        pieces: the same as the chunks had it.
        calls: name and arguments, as they were written.
        finish_reasons: of all chunks.
        roles: of all chunks.
        logprobs: as the answer has them; of a stream, one after the other.
        token_ids: of its tokens.
    """

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    logprobs: dict[str, Any] | None = None
    token_ids: list[Any] = field(default_factory=list)

    @property
    def finish_reason(self) -> str | None:
        return self.finish_reasons[-1] if self.finish_reasons else None


@dataclass
class Answer:
    """Attributes:
    usages: of the answer, or of each chunk that has one.
    of_prompt: what is told of the prompt: `prompt_token_ids` and `prompt_logprobs`.
    chunks: of a stream; `done` counts its end marks, `after_done` what follows them.
    """

    choices: dict[int, Choice] = field(default_factory=dict)
    usages: list[dict[str, Any]] = field(default_factory=list)
    of_prompt: dict[str, Any] = field(default_factory=dict)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    done: int = 0
    after_done: int = 0

    @property
    def first(self) -> Choice:
        if 0 not in self.choices:
            raise FaultError("the answer has no choice 0")
        return self.choices[0]

    @property
    def text(self) -> str:
        return self.first.text

    @property
    def texts(self) -> list[str]:
        return [self.choices[index].text for index in sorted(self.choices)]

    @property
    def finish_reason(self) -> str | None:
        return self.first.finish_reason

    @property
    def num_tokens(self) -> int:
        return self._count("completion_tokens")

    @property
    def num_prompt_tokens(self) -> int:
        return self._count("prompt_tokens")

    @property
    def num_cached_tokens(self) -> int:
        details = self.usages[-1].get("prompt_tokens_details") if self.usages else None
        count = details.get("cached_tokens") if isinstance(details, dict) else None
        return count if isinstance(count, int) else 0

    def _count(self, name: str) -> int:
        count = self.usages[-1].get(name) if self.usages else None
        if not isinstance(count, int):
            raise FaultError(f"the answer's usage has no {name}")
        return count

    def add(self, body: dict[str, Any]) -> None:
        """Take a whole answer or a chunk in.

        Raises:
            FaultError: it is neither.
        """
        try:
            if isinstance(usage := body.get("usage"), dict):
                self.usages.append(usage)
            self._add_of_prompt(body)
            for given in body["choices"]:
                self._add_of_prompt(given)
                self._add_choice(given)
        except (KeyError, TypeError, AttributeError) as error:
            raise FaultError(f"the answer is not in the API's form ({error!r})") from None

    def _add_of_prompt(self, given: dict[str, Any]) -> None:
        for name in ("prompt_token_ids", "prompt_logprobs"):  # of a chat, or of a choice of text
            if given.get(name) is not None:
                self.of_prompt[name] = given[name]

    def _add_choice(self, given: dict[str, Any]) -> None:
        choice = self.choices.setdefault(int(given.get("index") or 0), Choice())
        said = given.get("message") or given.get("delta") or {}
        reasoning = said.get("reasoning_content") or said.get("reasoning") or ""
        piece = f"{reasoning}{said.get('content') or ''}{given.get('text') or ''}"
        if piece:
            choice.text += piece
            choice.pieces.append(piece)
        choice.token_ids += given.get("token_ids") or ()
        if role := said.get("role"):
            choice.roles.append(role)
        for place, call in enumerate(said.get("tool_calls") or ()):
            index = call.get("index")
            at = place if index is None else int(index)
            while len(choice.calls) <= at:
                choice.calls.append(("", ""))
            name, arguments = choice.calls[at]
            function = call.get("function") or {}
            more = function.get("arguments") or ""
            text = more if isinstance(more, str) else json.dumps(more)
            choice.calls[at] = (name or function.get("name") or "", arguments + text)
        if reason := given.get("finish_reason"):
            choice.finish_reasons.append(reason)
        if isinstance(logprobs := given.get("logprobs"), dict):
            if choice.logprobs is None:
                choice.logprobs = {}
            for name, values in logprobs.items():
                if isinstance(values, list):
                    choice.logprobs.setdefault(name, []).extend(values)


class Server:
    """An OpenAI-compatible server, by its URL.

    Args:
        url: with or without the `/v1` of the API.
        model: what the server calls the model.
        rename: fields that the server has under another name.
        transport: in place of the network, for tests.

    Raises:
        UnreachableError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        rename: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UnreachableError(f"{url!r} is not a server's URL. Expected http://host:port/v1.")
        root = url.rstrip("/").removesuffix("/v1")
        headers = _HEADERS | ({"authorization": f"Bearer {api_key}"} if api_key else {})
        self.model = model
        self.rename = dict(rename or {})
        self._client = httpx.AsyncClient(
            base_url=root,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> httpx.Response:
        """Raises:
        GoneError: no response came.
        """
        return await self._send("GET", path, None)

    async def post(self, path: str, body: Any) -> httpx.Response:
        """Args:
            body: JSON, or bytes that are sent as they are.

        Raises:
            GoneError: no response came.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self._send("POST", path, data)

    async def ask(self, path: str, body: dict[str, Any]) -> Answer:
        """The answer to a request, streamed or not, whole.

        Raises:
            RefusedError, FaultError: there is none.
        """
        body = {self.rename.get(name, name): value for name, value in body.items()}
        answer = Answer()
        if not body.get("stream"):
            for _ in range(_MAX_BUSY_TRIES):
                response = await self.post(path, body)
                if response.status_code not in _BUSY:
                    break
                await asyncio.sleep(_BUSY_WAIT_S)
            _raise_for(response.status_code, response.text)
            answer.add(_object(response.text))
            return answer
        async for data in self.events(path, body):
            if answer.done:
                answer.after_done += 1
            if data == "[DONE]":
                answer.done += 1
                continue
            if data == "null":  # says nothing, and Axion passes it over
                continue
            chunk = _object(data)
            if error := chunk.get("error"):
                raise FaultError(f"an error in the stream: {_short(error)}")
            answer.chunks.append(chunk)
            answer.add(chunk)
        return answer

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
        """The data of a stream's events.

        Raises:
            RefusedError, FaultError: there is no stream, or it broke.
        """
        try:
            async with self._client.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    _raise_for(response.status_code, (await response.aread()).decode())
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield line.removeprefix("data:").strip()
        except httpx.HTTPError as error:
            raise GoneError(f"the connection broke ({type(error).__name__})") from None

    async def is_there(self) -> bool:
        """Whether it answers anything at all."""
        try:
            await self.get("/v1/models")
        except GoneError:
            return False
        return True

    async def _send(self, method: str, path: str, data: bytes | None) -> httpx.Response:
        headers = {"content-type": "application/json"} if data is not None else {}
        try:
            return await self._client.request(method, path, content=data, headers=headers)
        except httpx.HTTPError as error:
            raise GoneError(f"no answer ({type(error).__name__})") from None


def _raise_for(status: int, text: str) -> None:
    if status == 200:
        return
    message, param = error_of(text)
    if status in (401, 403):
        raise UnreachableError(f"The server lets nobody in ({status}): {message}. Check the key.")
    if 400 <= status < 500 or status == 501:
        raise RefusedError(status, message, param)
    raise FaultError(f"status {status}: {message}")


def error_of(text: str) -> tuple[str, str]:
    """Message and param of an error's body, as far as it has them."""
    try:
        body = json.loads(text)
    except ValueError:
        return _short(text), ""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return _short(error), ""
    message = error.get("message") or error.get("detail") or error
    return str(message), str(error.get("param") or "")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise FaultError(f"not a JSON object: {_short(text)}")
    return value


def _short(value: Any) -> str:
    return str(value)[:120]
