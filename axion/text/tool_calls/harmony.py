from __future__ import annotations

import re
from collections.abc import Sequence

from axion.text.events import ReasoningDelta
from axion.text.stream_parser import CutError, MalformedError, Steps
from axion.text.tool_calls.base import Functions, ToolCallParser, WrittenCall

_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_NEXT = "<|start|>assistant"
_BEGINNINGS = ("<|start|>", "<|channel|>", " to=functions.")
_RECIPIENT = re.compile(r"to=functions\.([\w.-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


class Harmony(ToolCallParser):
    """Messages on channels: `analysis` is reasoning, `commentary` to a function is a call.

        <|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary
        to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>

    gpt-oss (cookbook.openai.com/articles/openai-harmony). What is on no other channel, and
    commentary to nobody, is text.
    """

    markers = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")
    call_begin = "<|start|>assistant<|channel|>commentary to=functions."
    arguments_begin = " <|constrain|>json<|message|>"
    call_end = "<|call|>"

    @classmethod
    def write_messages(cls, reasoning: str, content: str, calls: Sequence[WrittenCall]) -> str:
        """An answer as the model writes it, up to where it has come."""
        messages = [f"<|channel|>analysis<|message|>{reasoning}"] if reasoning else []
        at = 0
        for call in calls:
            if text := content[at : call.offset]:
                messages.append(f"<|channel|>commentary<|message|>{text}")
                at = call.offset
            header = cls.call_begin.removeprefix(_NEXT) + call.name + cls.arguments_begin
            messages.append(header + call.arguments)
        if content[at:]:
            messages.append(f"<|channel|>final<|message|>{content[at:]}")
        return f"<|end|>{_NEXT}".join(messages)

    def __init__(self, functions: Functions) -> None:
        self._thinks = False
        super().__init__(functions)

    @property
    def reasoning(self) -> bool:
        return self._thinks

    def parse(self) -> Steps[None]:
        end = ""
        while (yield from self.peek()):
            try:
                end = yield from self._message(*(["assistant"] if end == "<|start|>" else []))
            except CutError:
                # What is left is a header without a message; anything else is sent by now.
                self._at = len(self._text)
                self.drop()
            self._thinks = False

    def _message(self, *beginnings: str) -> Steps[str]:
        """Read a message, whose header may also begin with `beginnings`; returns what ends it."""
        header = ""
        for beginning in (*_BEGINNINGS, *beginnings):
            if (yield from self.accept(beginning)):
                header, _ = yield from self.until("<|message|>")
                header = beginning + header
                break
        self.drop()
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        if recipient and recipient[1] in self._functions:
            return (yield from self._call(recipient[1]))
        self._thinks = bool(channel and channel[1] == "analysis")
        send = self._send_reasoning if self._thinks else self.send_text
        return (yield from self.send_until(send, *_ENDS))

    def _call(self, name: str) -> Steps[str]:
        try:
            yield from self.skip_space()
            yield from self.json_arguments_of(name)
        except MalformedError as error:
            if isinstance(error, CutError):
                raise
        finally:
            if self._in_call:
                self.end_call()
        return (yield from self.send_until(self.send_text, *_ENDS))

    def _send_reasoning(self, text: str) -> None:
        if text:
            self.emit(ReasoningDelta(text))
