"""Tool calls in a model's answer, as the Hermes family writes them.

One call is `<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>`, with white space
anywhere around the JSON (NousResearch/Hermes-Function-Calling).
"""

from __future__ import annotations

import re

import msgspec

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


class ToolCall(msgspec.Struct, frozen=True):
    """A function that the model wants called.

    Attributes:
        arguments: a JSON object, as the model wrote it.
    """

    name: str
    arguments: str


class _Hermes:
    """How calls are written, for `tool_grammar`."""

    openings = (OPEN,)
    calls_begin = ""
    call_begin = OPEN + '\n{"name": "'
    arguments_begin = '", "arguments": '
    call_end = "}\n" + CLOSE
    call_separator = "\n"
    calls_end = ""


FORMAT = _Hermes()


class HermesToolCalls:
    """Separates tool calls from text while it comes.

    The result does not depend on how the text is cut into pieces. What only looks like a call
    stays text, so nothing is lost but white space next to a call.
    """

    def __init__(self) -> None:
        self._held = ""
        self._in_call = False
        self._searched = 0
        self._num_calls = 0

    @property
    def num_held(self) -> int:
        """Characters that are held back: a call, or what may become one."""
        return len(self._held)

    def push(self, text: str) -> list[str | ToolCall]:
        """Add text; returns the text and the calls that are certain now, in order."""
        self._held += text
        parts: list[str | ToolCall] = []
        while self._take_call(parts) if self._in_call else self._take_text(parts):
            pass
        return parts

    def flush(self) -> list[str | ToolCall]:
        """The rest, when the text ends. A call needs no closing tag there."""
        parts: list[str | ToolCall] = []
        while self._in_call:
            self._resolve(parts, self._held, "")
            parts += self.push("")
        rest, self._held = self._held, ""
        if rest.strip() or (rest and not self._num_calls):
            parts.append(rest)
        return parts

    def _take_text(self, parts: list[str | ToolCall]) -> bool:
        """Move text to `parts` up to a call; whether there is one."""
        before, tag, after = self._held.partition(OPEN)
        if tag:
            self._in_call, self._searched = True, 0
            # The white space goes if this becomes a call, so it waits with it.
            text = before.rstrip()
            self._held = before[len(text) :] + tag + after
        else:
            text = _without_beginning_of_tag(before).rstrip()
            self._held = before[len(text) :]
        if text:
            parts.append(text)
        return bool(tag)

    def _take_call(self, parts: list[str | ToolCall]) -> bool:
        """Move a whole call to `parts`, or text if it is none; False if that is open yet."""
        body_start = self._held.index(OPEN) + len(OPEN)
        body = self._held[body_start:].lstrip()
        if body and body[0] != "{":
            self._give_up(parts)
            return True
        while (end := self._held.find(CLOSE, max(self._searched, body_start))) >= 0:
            body = self._held[body_start:end]
            if '"' not in _JSON_STRING.sub("", body):
                self._resolve(parts, self._held[:end], self._held[end + len(CLOSE) :])
                return True
            self._searched = end + 1  # the tag is inside a string
        self._searched = max(len(self._held) - len(CLOSE) + 1, 0)
        return False

    def _resolve(self, parts: list[str | ToolCall], call: str, after: str) -> None:
        parsed = _parse(call.partition(OPEN)[2])
        if parsed is None:
            self._give_up(parts)
            return
        parts.append(parsed)
        self._num_calls += 1
        self._held, self._in_call = after, False

    def _give_up(self, parts: list[str | ToolCall]) -> None:
        """The tag is plain text; a call may still follow it."""
        before, tag, self._held = self._held.partition(OPEN)
        parts.append(before + tag)
        self._in_call = False


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


def _parse(text: str) -> ToolCall | None:
    try:
        call = msgspec.json.decode(text, type=_Call)
        arguments = bytes(call.arguments).decode()
        call.name.encode()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return ToolCall(call.name, arguments) if arguments.startswith("{") and call.name else None


def _without_beginning_of_tag(text: str) -> str:
    """`text` without an end that may become the opening tag."""
    for length in range(min(len(OPEN) - 1, len(text)), 0, -1):
        if text.endswith(OPEN[:length]):
            return text[:-length]
    return text
