"""What a model thinks before it answers, and where that ends."""

from __future__ import annotations

import contextlib

import msgspec

from axion.text.events import ReasoningDelta
from axion.text.stream_parser import CutError, Steps, StreamParser


class ReasoningTags(msgspec.Struct, frozen=True):
    """What stands around a model's reasoning.

    Attributes:
        answer_begin: with `answer_end`, what the model writes around the answer, if anything.
        lead: with the next two, the white space that it writes: between `begin` and the
            reasoning, between that and `end`, and before the answer.
    """

    begin: str
    end: str
    answer_begin: str = ""
    answer_end: str = ""
    lead: str = "\n"
    trail: str = "\n"
    gap: str = "\n\n"

    @property
    def markers(self) -> tuple[str, ...]:
        tags = (self.begin, self.end, self.answer_begin, self.answer_end)
        return tuple(filter(None, tags))

    def write(self, reasoning: str, answer: str, *, opened: bool) -> str:
        """What the model has written when it has come so far.

        Args:
            opened: `begin` is in the prompt.
        """
        if not reasoning and not opened:
            return answer
        begun = reasoning if opened else f"{self.begin}{self.lead}{reasoning}"
        if not answer:
            return begun
        gap = "" if answer[0].isspace() else self.gap
        return f"{begun}{self.trail}{self.end}{gap}{self.answer_begin}{answer}"

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends with the tag, so that the answer begins inside the reasoning."""
        return prompt.rstrip().endswith(self.begin)

    def left_open_in(self, answer: str) -> bool:
        """Whether the beginning of an answer ends inside the reasoning."""
        return answer.rfind(self.begin) > answer.rfind(self.end)


# What a chat template says of its model's reasoning; the first that is in it counts.
REASONING: tuple[tuple[str, ReasoningTags], ...] = (
    (
        "<seed:think>",
        ReasoningTags("<seed:think>", "</seed:think>", lead="", trail="", gap=""),
    ),  # Seed-OSS
    (
        "[THINK]",
        ReasoningTags("[THINK]", "[/THINK]", lead="", trail="", gap=""),
    ),  # Magistral, Ministral 3
    ("<|channel>", ReasoningTags("<|channel>thought", "<channel|>", gap="")),  # Gemma 4
    (
        "Here is my thought process:",  # Granite 3.2
        ReasoningTags(
            "Here is my thought process:", "Here is my response:", lead=" ", trail="\n\n", gap=" "
        ),
    ),
    (
        "<response></response>",  # Granite 3.3
        ReasoningTags(
            "<think>", "</think>", "<response>", "</response>", lead="", trail="", gap="\n"
        ),
    ),
    ("</think>", ReasoningTags("<think>", "</think>")),  # Qwen3, DeepSeek, GLM-4.5 and most
)


def reasoning_tags(template: str) -> ReasoningTags | None:
    """The tags that the model of a chat template writes; None if it does not reason in tags."""
    return next((tags for marker, tags in REASONING if marker in template), None)


class ReasoningParser(StreamParser):
    """Separates the reasoning at the beginning of an answer from the rest.

    Tags are only tags where reasoning may stand; white space next to them goes with them.
    Reasoning that does not end before the answer does is reasoning all the same.

    Args:
        opened: the prompt ends with the opening tag.
    """

    def __init__(self, tags: ReasoningTags, *, opened: bool) -> None:
        self._tags = tags
        self._thinks = opened
        self._space = ""  # of the reasoning, sent when more of it follows
        super().__init__()

    @property
    def reasoning(self) -> bool:
        return self._thinks

    def parse(self) -> Steps[None]:
        with contextlib.suppress(CutError):
            if not self._thinks:
                yield from self.skip_space()
                self._thinks = yield from self.accept(self._tags.begin)
            if self._thinks:
                yield from self._reasoning()
            else:
                self._at = 0  # the white space belongs to the answer
            yield from self.send_until(self.send_text)

    def _reasoning(self) -> Steps[None]:
        yield from self._drop_space()
        yield from self.send_until(self._send_reasoning, self._tags.end)
        self._thinks = False
        yield from self._drop_space()
        if self._tags.answer_begin and (yield from self.accept(self._tags.answer_begin)):
            yield from self._drop_space()
            yield from self.send_until(self.send_text, self._tags.answer_end)

    def _drop_space(self) -> Steps[None]:
        yield from self.skip_space()
        self.drop()

    def _send_reasoning(self, text: str) -> None:
        text = self._space + text
        sure = text.rstrip()
        self._space = text[len(sure) :]
        if sure:
            self.emit(ReasoningDelta(sure))
