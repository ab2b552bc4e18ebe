"""One answer on its way from a server to a client."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from axion.backends.events import ServerEvent
from axion.backends.upstream.dialect import Dialect
from axion.backends.upstream.faults import Faults
from axion.backends.upstream.messages import NO_ERROR, Choice, Event
from axion.backends.upstream.stop_cut import StopCut
from axion.backends.upstream.usage import UsageCount
from axion.errors import CannotContinueError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.common import stop_reason_field
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.delivered import Delivered, DeliveredChoice

_DONE = b"[DONE]"
_NOTHING = b"null"  # with which llama.cpp begins the stream of several prompts

TokensT = TypeVar("TokensT")
RequestT = TypeVar("RequestT", ChatCompletionRequest, CompletionRequest)
ChunkT = TypeVar("ChunkT", ChatCompletionChunk, CompletionChunk)


class Answer(ABC, Generic[RequestT, ChunkT]):
    """The events of a server to the chunks of a client, whose beginning it may have already.

    A subclass knows one endpoint.

    Args:
        served_name: what clients call the model.
        delivered: what the client has of the answer from another engine.

    Attributes:
        path: of the endpoint, behind `/v1`.
        object: what a chunk is called.
        id_prefix: what an answer's id begins with.
        is_stream: the server is asked for events; else for one answer, which `take` gets as one.
        is_done: nothing follows, as the server has said, or since the answer is cut.
        is_cut: stop strings ended it, which the server does not know.
    """

    path: ClassVar[str]
    object: ClassVar[str]
    id_prefix: ClassVar[str]

    def __init__(
        self,
        dialect: Dialect,
        faults: Faults,
        served_name: str,
        request: RequestT,
        request_id: str,
        delivered: Delivered | None,
    ) -> None:
        self._dialect = dialect
        self._faults = faults
        self._request: RequestT = request
        self._delivered = delivered
        self._shared: dict[str, Any] = {
            "id": f"{self.id_prefix}-{request_id}",
            "object": self.object,
            "created": int(time.time()),
            "model": served_name,
            "system_fingerprint": None,
        }
        if request.include_usage and request.stream:
            self._shared["usage"] = None
        self._with_usage = request.usage_in_every_chunk
        self._tells_usage = dialect.tells_usage and self._num_choices == 1
        self._usage = UsageCount(delivered, request.num_choices)
        stop = request.stop if dialect.cuts(request) else None
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        self._cuts: dict[int, StopCut[Any]] = {}
        self._began: set[int] = set()
        self._finished: set[int] = set()
        self._token_ids: dict[int, list[int]] = {}  # that no chunk has told yet
        self._exhausted = False  # all tokens are delivered, and nobody has said so
        self.is_stream = dialect.streams(request)
        self.is_done = False
        self.is_cut = False

    @property
    def _num_choices(self) -> int:
        """Of all prompts."""
        return self._request.num_choices

    def body(self) -> dict[str, Any] | None:
        """What to ask the server for; None where nothing is left to ask for.

        Raises:
            InvalidRequestError: the server has no field for something in the request.
            CannotContinueError: this server cannot go on with what is delivered.
        """
        body = self._dialect.body(self._request)
        delivered = self._delivered
        if delivered is None or not delivered.started:
            return body
        if self._num_choices > 1:
            raise self._cannot("an answer with several choices")
        choice = delivered.choices[0]
        self._began.add(0)
        if choice.finished:
            self._finished.add(0)
            return self._ask_for_usage(body)
        if not (choice.content or choice.reasoning or choice.calls):
            return body
        if choice.reasoning or choice.calls:
            raise self._cannot("reasoning or a tool call")
        if self._request.constraint is not None:
            raise self._cannot("an answer that follows a grammar")
        # They count what was generated, and what is delivered would now be prompt. A seed is let
        # pass: the rest is drawn anew, but from the same distribution.
        if self._request.presence_penalty or self._request.frequency_penalty:
            raise self._cannot("an answer with penalties on what it has said")
        self._go_on(body, choice)
        for name in ("max_tokens", "max_completion_tokens", "min_tokens"):
            name = self._dialect.name_of(name)
            if name in body:
                body[name] = max(0, body[name] - self._usage.num_delivered)
                if not body[name] and not name.startswith("min"):
                    self._exhausted = True
                    self._finished.add(0)
                    return self._ask_for_usage(self._dialect.body(self._request))
        return body

    def _ask_for_usage(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """What tells how long the prompt is, where that is wanted and not known."""
        if self._delivered is None or self._delivered.usage or not self._request.include_usage:
            return None
        self._usage.of_prompt_only = True
        for name in ("max_completion_tokens", "min_tokens"):
            body.pop(self._dialect.name_of(name), None)
        return body | {self._dialect.name_of("max_tokens"): 1}

    @abstractmethod
    def _go_on(self, body: dict[str, Any], choice: DeliveredChoice) -> None:
        """Make `body` ask for what follows the delivered text.

        Raises:
            CannotContinueError: this server cannot be asked for that.
        """

    def _cannot(self, what: str) -> CannotContinueError:
        return CannotContinueError(
            f"The answer broke off, and {what} cannot be gone on with by another engine."
        )

    def take(self, event: ServerEvent) -> list[ChunkT]:
        """The chunks for an event of the server.

        Raises:
            AxionError: it is an error, or cannot be understood.
        """
        if self.is_cut or event.data == _NOTHING:
            return []
        if event.data == _DONE:
            self.is_done = True
            return []
        try:
            message = self._decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._faults.not_understood() from None
        is_error = message.error is not NO_ERROR and message.error != NO_ERROR
        if is_error or event.name == b"error":
            raise self._faults.of_event(event.data)
        self._keep(message)
        chunks: list[ChunkT] = []
        for choice in message.choices or ():
            if not 0 <= choice.index < self._num_choices:
                raise self._faults.not_understood()
            if choice.index in self._finished:
                continue
            if self._dialect.counts or message.timings is not None:
                self._usage.count(choice, message.timings)
            if self._request.return_token_ids:
                self._token_ids.setdefault(choice.index, []).extend(choice.token_ids or ())
            # What cuts the choice also sets its finish_reason.
            chunks += [self._chunk(choice.index, fields) for fields in self._parts(choice)]
            if choice.finish_reason:
                chunks.append(self._last(choice))
        if self.is_cut:
            self.is_cut = self.is_done = len(self._finished) == self._num_choices
        return chunks

    def end(self) -> Iterator[ChunkT]:
        """What follows the server's last event.

        Raises:
            EngineUnavailableError: the answer is not whole.
        """
        if self._exhausted:
            yield self._last(Choice(finish_reason="length"))
        if len(self._finished) < self._num_choices:
            raise self._faults.incomplete()
        if self._request.include_usage:
            yield self._validate({**self._shared, "choices": [], **self._of_answer()})

    @abstractmethod
    def _decode(self, data: bytes) -> Event:
        """Raises:
        msgspec.DecodeError: it is not what the endpoint sends.
        """

    def _keep(self, message: Any) -> None:
        """Note what an event says of the whole answer."""
        if message.usage is not None:
            self._usage.told = message.usage

    @abstractmethod
    def _validate(self, fields: dict[str, Any]) -> ChunkT: ...

    @abstractmethod
    def _parts(self, choice: Any) -> Iterator[dict[str, Any]]:
        """What a server's choice adds, as choices of chunks without `index`."""

    @abstractmethod
    def _finish(self, choice: Any, reason: str) -> dict[str, Any]:
        """The choice of the chunk that ends one, without `index`."""

    def _usage_field(self) -> dict[str, Any]:
        return self._usage.as_field()

    def _of_answer(self) -> dict[str, Any]:
        """What the last chunk tells of the whole answer."""
        return {"usage": self._usage_field()}

    def _shown(
        self, choice: Choice, text: str, tokens: TokensT | None
    ) -> tuple[str, list[TokensT]]:
        """What of a chunk's text can be shown now, and what is told of the tokens in it."""
        if not self._stop:
            return text, [] if tokens is None else [tokens]
        cut = self._cuts.get(choice.index)
        if cut is None:
            include = bool(self._request.include_stop_str_in_output)
            cut = self._cuts[choice.index] = StopCut(self._stop, include)
        may_stop = self._usage.num_generated(choice.index) >= (self._request.min_tokens or 0)
        shown, told, stop = cut.push(text, tokens, may_stop=may_stop)
        if stop is not None:
            choice.finish_reason, choice.stop_reason = "stop", stop
            self.is_cut = True
        elif choice.finish_reason:
            rest, more = cut.flush()
            shown, told = shown + rest, told + more
        return shown, told

    def _chunk(self, index: int, fields: dict[str, Any]) -> ChunkT:
        choice = {"index": index, "finish_reason": None, **fields}
        if self._request.return_token_ids:
            choice["token_ids"] = self._token_ids.pop(index, [])
        chunk = {**self._shared, "choices": [choice]}
        if self._with_usage:
            chunk["usage"] = self._usage_field()
        elif self._tells_usage and self._usage.is_told:
            chunk["usage_so_far"] = self._usage.so_far()
        return self._validate(chunk)

    def _last(self, choice: Choice) -> ChunkT:
        reason = choice.finish_reason
        assert reason is not None
        if reason in ("abort", "error"):
            raise self._faults.given_up()
        self._finished.add(choice.index)
        fields = self._finish(choice, reason)
        return self._chunk(choice.index, fields | stop_reason_field(choice.stop_reason))
