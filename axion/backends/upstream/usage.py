"""How many tokens an answer of a server takes: by what the server tells, else by its chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.backends.upstream.messages import Choice, PromptDetails, Timings, Usage
from axion.openai.common import UsageSoFar
from axion.openai.delivered import Delivered


@dataclass(slots=True)
class _Counted:
    """The tokens of one choice and of its prompt."""

    num_prompt: int = 0
    num_cached: int = 0
    num_generated: int = 0


class UsageCount:
    """The tokens of one answer, what was delivered of it before included.

    Args:
        delivered: what the client has of the answer from another engine.
        choices_per_prompt: how many the request asks for.

    Attributes:
        told: what the server last said.
        num_chunks: with tokens in them.
        num_delivered: tokens that the client has from another engine.
        of_prompt_only: the server was asked for the prompt's length alone.
    """

    def __init__(self, delivered: Delivered | None, choices_per_prompt: int) -> None:
        self._before = None if delivered is None else delivered.usage
        self._choices_per_prompt = choices_per_prompt
        self._counted: dict[int, _Counted] = {}  # where the server counts each choice's tokens
        self.told: Usage | None = None
        self.num_chunks = 0
        self.num_delivered = 0
        if delivered is not None and delivered.started:
            self.num_delivered = (
                sum(choice.num_chunks for choice in delivered.choices.values())
                if delivered.usage is None
                else delivered.usage.completion_tokens
            )
        self.of_prompt_only = False

    @property
    def is_told(self) -> bool:
        """Whether the server has said anything of it."""
        return self.told is not None or bool(self._counted)

    def count(self, choice: Choice, timings: Timings | None) -> None:
        """Add the tokens of a chunk's choice, where the server says which or how many they are."""
        if timings is None and choice.token_ids is None:
            return
        counted = self._counted.setdefault(choice.index, _Counted())
        if timings is not None:
            counted.num_prompt = timings.cache_n + timings.prompt_n
            counted.num_cached = timings.cache_n
            counted.num_generated = timings.predicted_n
            return
        counted.num_prompt += len(choice.prompt_token_ids or ())
        counted.num_generated += len(choice.token_ids or ())

    def num_generated(self, index: int) -> int:
        """Tokens of a choice, as far as the server counts them."""
        counted = self._counted.get(index)
        return self.num_delivered + (counted.num_generated if counted else 0)

    def so_far(self) -> UsageSoFar:
        """Of the whole answer: what was delivered before is part of it, and not of the prompt."""
        told = self._by_server()
        if self.of_prompt_only:
            told = Usage(told.prompt_tokens + self.num_delivered, 0, told.prompt_tokens_details)
        num_here = told.completion_tokens
        if num_here is None:
            num_here = self.num_chunks
        num_prompt = max(0, told.prompt_tokens - self.num_delivered)
        num_cached = min(told.num_cached, num_prompt)
        if self._before is not None:
            num_prompt = self._before.prompt_tokens
            num_cached = self._before.cached_tokens
        return UsageSoFar(num_prompt, num_cached, self.num_delivered + num_here)

    def as_field(self) -> dict[str, Any]:
        """A chunk's `usage`."""
        counts = self.so_far()
        return {
            "prompt_tokens": counts.prompt_tokens,
            "completion_tokens": counts.completion_tokens,
            "total_tokens": counts.prompt_tokens + counts.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
        }

    def _by_server(self) -> Usage:
        """What the server says; of llama.cpp, the usage of several choices is that of one."""
        usage = self.told or Usage()
        if not self._counted:
            return usage
        prompts = {
            index // self._choices_per_prompt: counted for index, counted in self._counted.items()
        }
        num_cached = sum(counted.num_cached for counted in prompts.values())
        return Usage(
            sum(counted.num_prompt for counted in prompts.values()),
            sum(counted.num_generated for counted in self._counted.values()),
            PromptDetails(max(num_cached, usage.num_cached)),
            usage.completion_tokens_details,
        )
