"""How a model writes its answers, learned from its chat template."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from axion.errors import CannotContinueError
from axion.text.reasoning import ReasoningParser, ReasoningTags, reasoning_tags
from axion.text.stream_parser import AnswerParser, Chain
from axion.text.tool_calls import Functions, ToolCallParser, WrittenCall, tool_call_format
from axion.text.tool_calls.harmony import Harmony


class AnswerFormat(msgspec.Struct, frozen=True):
    """What is in an answer besides text.

    Attributes:
        tool_calls: how the model writes calls.
        reasoning: the tags around its reasoning, if it writes any.
    """

    tool_calls: type[ToolCallParser]
    reasoning: ReasoningTags | None

    @property
    def reasons(self) -> bool:
        return self.reasoning is not None or self.tool_calls is Harmony

    def markers(self, functions: Functions | None) -> tuple[str, ...]:
        """Pieces of text that the parser needs, and that may be special tokens."""
        calls = self.tool_calls.markers if self._reads_calls(functions) else ()
        return calls + (self.reasoning.markers if self.reasoning else ())

    def parser(self, functions: Functions | None, *, opened: bool) -> AnswerParser | None:
        """A parser of one answer; None if all of it is text.

        Args:
            functions: those that may be called, with the schemas of their parameters; None
                leaves calls in the text.
            opened: the answer begins inside the reasoning.
        """
        calls = self.tool_calls(functions or {}) if self._reads_calls(functions) else None
        if self.reasoning is None:
            return calls
        reasoning = ReasoningParser(self.reasoning, opened=opened)
        return reasoning if calls is None else Chain(reasoning, calls)

    def write(
        self, reasoning: str, content: str, calls: Sequence[WrittenCall], *, opened: bool
    ) -> str:
        """What the model has written when it has come so far: `parser` reads it back.

        Args:
            calls: in order; what is there of the last one's arguments may be a part.
            opened: the answer begins inside the reasoning.

        Raises:
            CannotContinueError: the model does not write reasoning.
        """
        if reasoning and not self.reasons:
            raise CannotContinueError("This model does not write its reasoning.")
        if self.tool_calls is Harmony:
            return Harmony.write_messages(reasoning, content, calls)
        answer = self.tool_calls.write(content, calls)
        if self.reasoning is None:
            return answer
        return self.reasoning.write(reasoning, answer, opened=opened)

    def _reads_calls(self, functions: Functions | None) -> bool:
        return functions is not None or self.tool_calls is Harmony


def answer_format(template: str) -> AnswerFormat:
    """The format of the model that a chat template belongs to."""
    tool_calls = tool_call_format(template)
    reasoning = None if tool_calls is Harmony else reasoning_tags(template)
    return AnswerFormat(tool_calls=tool_calls, reasoning=reasoning)
