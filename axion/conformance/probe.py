"""Questions to one endpoint, and what can be relied on in its answers.

Nothing here knows what the model says: every text that a check expects comes from the server's own
earlier answers, so that a model with random weights serves as well as a trained one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from axion.conformance.server import Answer, FaultError, RefusedError, Server
from axion.conformance.tokens import Tokens

NUM_TOKENS = 16
HOT = 2.0
NUM_SAMPLES = 5
_END_WITHIN = 64
_LONG_PROMPTS = (
    "Tell me a long story about a fox and a river.",
    "Count from one to one hundred.",
    "Write a poem about the sea.",
    "Once upon a time",
    "1, 2, 3, 4, 5, 6,",
    "What can you do?",
)
# No model is sure of its answer to all of these.
_OPEN_PROMPTS = (
    "Pick a number.",
    "e e e e e e e e e e e e",
    "xq7 vz plomk grue 93 wibble",
    "Reverse: qwertyuiop asdfgh",
    "Tell me about a random animal and a random city.",
)
_SHORT_PROMPTS = ("Hello!", "What is 2 + 2?", "Say yes.", "Thank you, bye!")


class CannotTellError(Exception):
    """What a check needs beside its field is not there; says what."""


class Ending(NamedTuple):
    """A request whose answer ends by itself.

    Attributes:
        fields: that make it end.
        num_tokens: of the answer.
    """

    prompt: str
    fields: dict[str, Any]
    num_tokens: int
    how: str


class Probe:
    """One of the two endpoints of a server that generate.

    Attributes:
        tokens: token ids of texts, where they can be had.
        loose: what a sampled answer needs beside its temperature: some servers take a model whose
            files prefer the likeliest token at its word.
    """

    def __init__(self, server: Server, kind: Literal["chat", "text"], tokens: Tokens) -> None:
        self.server = server
        self.kind = kind
        self.tokens = tokens
        self.loose: dict[str, Any] = {}
        self._prompt = ""
        self._greedy: Answer | None = None
        self._wide: str | None = None
        self._ending: Ending | CannotTellError | None = None

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.kind == "chat" else "/v1/completions"

    def body(self, prompt: Any = None, **fields: Any) -> dict[str, Any]:
        """A request with `prompt`, by default one whose answer is long."""
        asked = self._prompt or _LONG_PROMPTS[0] if prompt is None else prompt
        question: dict[str, Any] = {"prompt": asked}
        if self.kind == "chat":
            question = {"messages": [{"role": "user", "content": asked}]}
        body = {"model": self.server.model, **question, "max_tokens": NUM_TOKENS, **fields}
        if body.get("stream") and "stream_options" not in body:
            body["stream_options"] = {"include_usage": True}
        return {name: value for name, value in body.items() if value is not None}

    async def ask(self, prompt: Any = None, **fields: Any) -> Answer:
        """The answer; by default the likeliest one.

        Raises:
            RefusedError, FaultError: there is none.
        """
        return await self.server.ask(self.path, self.body(prompt, **{"temperature": 0, **fields}))

    async def given(self, prompt: Any = None, **fields: Any) -> Answer:
        """The same for what a check needs beside its field.

        Raises:
            CannotTellError: the server refuses it.
        """
        try:
            return await self.ask(prompt, **fields)
        except RefusedError as error:
            raise CannotTellError(f"a request without it is refused ({error})") from None

    async def hot(self, **fields: Any) -> str:
        """A sampled text; two of them are hardly ever equal.

        Raises:
            CannotTellError: as `wide`.
        """
        prompt = await self.wide()
        return (await self.ask(prompt, **{**self.loose, "temperature": HOT, **fields})).text

    async def wide(self) -> str:
        """A prompt whose sampled answers differ from one another.

        Raises:
            CannotTellError: the server samples nothing, or the model is always sure.
        """
        if self._wide is None:
            self._wide = await self._find_wide()
        if not self._wide:
            raise CannotTellError("sampled answers do not differ from one another")
        return self._wide

    async def _find_wide(self) -> str:
        for loose in ({}, {"top_k": -1}):
            for prompt in (*_OPEN_PROMPTS, *_LONG_PROMPTS):
                fields = {**loose, "temperature": HOT}
                try:
                    answers = [await self.ask(prompt, **fields) for _ in range(NUM_SAMPLES)]
                except RefusedError:
                    break
                if len({answer.text for answer in answers}) == NUM_SAMPLES:
                    self.loose = loose
                    return prompt
        return ""

    async def greedy(self) -> Answer:
        """A long answer at temperature 0, streamed.

        Raises:
            CannotTellError: the model gives no answer of a few tokens.
        """
        if self._greedy is None:
            best: tuple[int, str, Answer] | None = None
            for prompt in _LONG_PROMPTS:
                answer = await self.given(prompt, stream=True)
                size = _size(answer)
                if best is None or size > best[0]:
                    best = size, prompt, answer
                if size >= NUM_TOKENS:
                    break
            assert best is not None
            if len(best[2].text) < 4:
                raise CannotTellError("the model's answers are too short")
            _, self._prompt, self._greedy = best
        return self._greedy

    async def steady(self, prompt: str | None = None) -> str:
        """The likeliest answer, which the server gives again when it is asked again.

        Raises:
            CannotTellError: it does not.
        """
        await self.greedy()
        texts = {(await self.given(prompt)).text for _ in range(3)}
        if len(texts) > 1:
            raise CannotTellError("answers at temperature 0 differ from one another")
        return texts.pop()

    async def ending(self) -> Ending:
        """A request whose answer the model ends.

        Raises:
            CannotTellError: it ends none, and cannot be made to.
        """
        if self._ending is None:
            try:
                self._ending = await self._find_ending()
            except CannotTellError as error:
                self._ending = error
        if isinstance(self._ending, CannotTellError):
            raise self._ending
        return self._ending

    async def _find_ending(self) -> Ending:
        for end in await self.tokens.ends():
            fields = {"logit_bias": {str(end): 100}}
            try:
                answer = await self.ask(**fields)
            except (RefusedError, FaultError):
                break
            if answer.finish_reason == "stop" and _size(answer) <= 2:
                return Ending(self._prompt, fields, answer.num_tokens, "a forced end")
        for prompt in (*_SHORT_PROMPTS, *_LONG_PROMPTS):
            answer = await self.given(prompt, max_tokens=_END_WITHIN)
            if answer.finish_reason == "stop":
                return Ending(prompt, {}, answer.num_tokens, "the model's own end")
        raise CannotTellError("the model ends no answer by itself")

    async def ids_in(self, text: str) -> Sequence[int]:
        """Ids of tokens that a text may be made of: of the whole, its words, its characters.

        Raises:
            CannotTellError: the tokenizer is not known.
        """
        ids: dict[int, None] = {}
        for part in (text, *text.split(), *dict.fromkeys(text)):
            for token_id in await self.tokens.encode(part):
                ids[token_id] = None
        if not ids:
            raise CannotTellError("the server's token ids are not known")
        return [*ids][:100]


def _size(answer: Answer) -> int:
    """Tokens of an answer; of a server that does not count them, its pieces."""
    return answer.num_tokens if answer.usages else len(answer.first.pieces)
