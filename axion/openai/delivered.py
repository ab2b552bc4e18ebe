"""What a client has of an answer so far, so that another engine can go on with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.common import UsageSoFar
from axion.openai.completions import CompletionChunk


@dataclass
class DeliveredCall:
    """A tool call, of which the last one of a choice may lack the end of its arguments.

    Attributes:
        offset: characters of content before it.
    """

    id: str
    name: str
    arguments: str = ""
    offset: int = 0


@dataclass
class DeliveredChoice:
    """One choice of an answer.

    Attributes:
        content: for text completions with `echo`, the prompt is its beginning.
        num_chunks: with tokens in them.
        finished: nothing follows.
    """

    reasoning: str = ""
    content: str = ""
    calls: list[DeliveredCall] = field(default_factory=list)
    num_chunks: int = 0
    finished: bool = False


@dataclass
class Delivered:
    """The choices of an answer, by index, and what the engine last said of its usage.

    Attributes:
        started: the client has seen something of the answer.
    """

    choices: dict[int, DeliveredChoice] = field(default_factory=dict)
    usage: UsageSoFar | None = None

    @property
    def started(self) -> bool:
        return bool(self.choices)

    def says_the_same(self, other: Delivered) -> bool:
        """Whether another answer has the same reasoning, text and calls, whatever their ids."""

        def content(answer: Delivered) -> dict[int, Any]:
            return {
                index: (
                    choice.reasoning,
                    choice.content,
                    [(call.name, call.arguments) for call in choice.calls],
                )
                for index, choice in answer.choices.items()
            }

        return content(self) == content(other)

    def take(self, chunk: ChatCompletionChunk | CompletionChunk) -> None:
        """Add what the client is about to get."""
        if chunk.usage_so_far is not None:
            self.usage = chunk.usage_so_far
        elif chunk.usage is not None:
            told = chunk.usage
            cached = told.prompt_tokens_details.cached_tokens
            self.usage = UsageSoFar(told.prompt_tokens, cached, told.completion_tokens)
        if isinstance(chunk, CompletionChunk):
            for text in chunk.choices:
                choice = self.choices.setdefault(text.index, DeliveredChoice())
                choice.content += text.text
                choice.num_chunks += bool(text.text)
                choice.finished |= text.finish_reason is not None
            return
        for part in chunk.choices:
            choice = self.choices.setdefault(part.index, DeliveredChoice())
            delta = part.delta
            choice.reasoning += delta.reasoning_content or ""
            choice.content += delta.content or ""
            for call in delta.tool_calls or ():
                if call.id is not None:
                    name = call.function.name or ""
                    choice.calls.append(DeliveredCall(call.id, name, offset=len(choice.content)))
                choice.calls[-1].arguments += call.function.arguments
            choice.num_chunks += bool(delta.reasoning_content or delta.content or delta.tool_calls)
            choice.finished |= part.finish_reason is not None
