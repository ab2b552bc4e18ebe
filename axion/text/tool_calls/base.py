"""What the formats of tool calls have in common."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from axion.text.events import ArgumentsDelta, CallEnd, CallStart
from axion.text.json_scanner import JsonScanner, State
from axion.text.stream_parser import CutError, MalformedError, Steps, StreamParser, num_begun

Functions = Mapping[str, Mapping[str, Any]]

_LONGEST_ESCAPE = len(r"\ud83d\ude00") + 1
_ARGUMENTS_KEYS = ("arguments", "parameters")


class WrittenCall(NamedTuple):
    """A call of an answer that is begun.

    Attributes:
        arguments: JSON, as far as it is there.
        offset: characters of text before the call.
    """

    name: str
    arguments: str
    offset: int

    @property
    def is_whole(self) -> bool:
        scanner = JsonScanner()
        scanner.scan(self.arguments, 0)
        return scanner.state is State.DONE


class ToolCallParser(StreamParser):
    """Separates tool calls from the text around them. A subclass is one way to write them.

    A call begins to be told as soon as its name is read and its arguments have begun; what is
    malformed before that stays text. From there on the arguments are told as they come. If
    they break off, the call has what was there, and the rest is text. So nothing is lost or
    told twice but white space next to calls.

    Args:
        functions: the functions that may be called, with the JSON schemas of their parameters.

    Attributes:
        openings: what calls begin with, wherever they are in the answer.
        markers: pieces of text by which the format is read; where the model's tokenizer has
            them as special tokens, they must not be left out of the text.
        calls_begin: with the next five, how the model's template writes calls:
            `calls_begin (call_begin NAME arguments_begin ARGUMENTS call_end)+ calls_end`, with
            `call_separator` between two calls.
        json_arguments: whether ARGUMENTS is a JSON object.
    """

    openings: ClassVar[tuple[str, ...]] = ()
    markers: ClassVar[tuple[str, ...]] = ()

    calls_begin: ClassVar[str] = ""
    call_begin: ClassVar[str] = ""
    arguments_begin: ClassVar[str] = ""
    call_end: ClassVar[str] = ""
    call_separator: ClassVar[str] = ""
    calls_end: ClassVar[str] = ""
    json_arguments: ClassVar[bool] = True

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._num_calls = 0
        self._in_call = False
        self._num_sure = 0  # characters before which no call can begin any more
        self._opening = re.compile("|".join(map(re.escape, self.openings)) or r"(?!)")
        super().__init__()

    def parse(self) -> Steps[None]:
        yield from self._attempt(self.calls_at_start())
        while opening := (yield from self._pass_text()):
            yield from self._attempt(self.calls(opening))

    @classmethod
    def reads_calls(cls, template: str) -> bool:
        """Whether a chat template of this format takes the calls of earlier answers."""
        return "tool_calls" in template

    @classmethod
    def template_messages(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages as templates of this format take them."""
        return messages

    @classmethod
    def write(cls, content: str, calls: Sequence[WrittenCall]) -> str:
        """Text and calls as the model writes them, up to where its answer has come."""
        written, at, is_open = "", 0, False
        for i, call in enumerate(calls):
            text, at = content[at : call.offset], call.offset
            if text.strip() and is_open:
                written += cls.calls_end
                is_open = False
            written += text
            if is_open:
                written += cls.call_separator
            else:
                written += cls.calls_begin or (cls.call_separator if written else "")
            is_open = True
            written += cls.call_begin + call.name + cls.arguments_begin
            written += cls.write_arguments(call.arguments)
            if i + 1 < len(calls) or content[at:] or call.is_whole:
                written += cls.call_end
        if calls and content[at:]:
            written += cls.calls_end
        return written + content[at:]

    @classmethod
    def write_arguments(cls, arguments: str) -> str:
        """Arguments as the model writes them; a part of a JSON object gives a part."""
        return arguments

    def calls(self, opening: str) -> Steps[None]:
        """Read what follows `opening`, as far as it is calls.

        Raises:
            MalformedError: it is none, or one that breaks off.
        """
        raise NotImplementedError

    def calls_at_start(self) -> Steps[None]:
        """Read calls with which the answer begins without any opening."""
        yield from ()

    def new_call_id(self) -> str:
        return f"call_{uuid.uuid4().hex[:24]}"

    def _attempt(self, steps: Steps[None]) -> Steps[None]:
        try:
            yield from steps
        except MalformedError as error:
            if self._in_call:
                if isinstance(error, CutError):
                    self._at = len(self._text)
                self.drop()
                self.end_call()
            else:
                self.send_text(self._text[: self._num_sure])
                self._at = self._num_sure
                self.drop()

    def _pass_text(self) -> Steps[str]:
        """Send text up to an opening; returns that, or nothing at the end of the answer.

        The white space before it goes if it opens a call, so it waits.
        """
        while True:
            found = self._opening.search(self._text)
            sure = (
                found.start() if found else len(self._text) - num_begun(self._text, self.openings)
            )
            text = self._text[:sure].rstrip()
            self.send_text(text)
            self._at = len(text)
            self.drop()
            if found:
                self._at = self._num_sure = found.end() - len(text)
                return found[0]
            if not (yield from self.more()):
                break
        if self._text.strip() or not self._num_calls:
            self.send_text(self._text)
        self._at = len(self._text)
        self.drop()
        return ""

    # What `calls` is made of.

    def drop(self) -> None:
        super().drop()
        self._num_sure = 0

    def start_call(self, name: str, call_id: str | None = None) -> None:
        """From here on it is a call."""
        self.drop()
        self.emit(CallStart(self._num_calls, call_id or self.new_call_id(), name))
        self._num_calls += 1
        self._in_call = True

    def send_arguments(self, text: str) -> None:
        if text:
            self.emit(ArgumentsDelta(self._num_calls - 1, text))

    def end_call(self) -> None:
        self.emit(CallEnd(self._num_calls - 1))
        self._in_call = False
        self.drop()

    def name(self) -> Steps[str]:
        """A function's name that is not quoted."""
        start = self._at
        while (char := (yield from self.peek())) and (char.isalnum() or char in "_-."):
            self._at += 1
        if self._at == start:
            raise MalformedError
        return self._text[start : self._at]

    def json_value(self) -> Steps[str]:
        """The text of a JSON value."""
        scanner = JsonScanner()
        pieces: list[str] = []
        while True:
            self._at, piece = scanner.scan(self._text, self._at)
            pieces.append(piece)
            if scanner.state is State.DONE:
                return "".join(pieces)
            if scanner.state is State.WRONG:
                raise MalformedError
            if not (yield from self.more()):
                raise CutError

    def json_string(self) -> Steps[str]:
        """The content of a JSON string."""
        if (yield from self.peek()) != '"':
            raise MalformedError
        text: str = json.loads((yield from self.json_value()))
        return text

    def json_arguments_of(self, name: str, call_id: str | None = None) -> Steps[None]:
        """Begin a call whose arguments are the JSON object that comes next; tell them."""
        if (yield from self.peek()) != "{":
            raise MalformedError
        self.start_call(name, call_id)
        scanner = JsonScanner()
        while True:
            self._at, piece = scanner.scan(self._text, self._at)
            self.send_arguments(piece)
            self.drop()
            if scanner.state is State.DONE:
                return
            if scanner.state is State.WRONG:
                raise MalformedError
            if not (yield from self.more()):
                self.send_arguments(self._text)
                raise CutError

    def json_call(self, *, known: bool = False) -> Steps[None]:
        """A call as a JSON object with `name` and `arguments` or `parameters`.

        Args:
            known: only a function of the request is one: nothing else tells it from data.
        """
        yield from self.expect("{")
        name = held = None
        while True:
            yield from self.skip_space()
            key = yield from self.json_string()
            yield from self.skip_space()
            yield from self.expect(":")
            yield from self.skip_space()
            if key == "name" and name is None:
                name = self._checked_name((yield from self.json_string()), known)
            elif key in _ARGUMENTS_KEYS and held is None:
                if name is not None and (yield from self.peek()) == "{":
                    yield from self.json_arguments_of(name)
                    yield from self._rest_of_json_call()
                    return
                held = _checked_arguments((yield from self.json_value()))
            else:
                yield from self.json_value()
            yield from self.skip_space()
            if (yield from self.expect(",", "}")) == "}":
                break
        if name is None:
            raise MalformedError
        self.start_call(name)
        self.send_arguments(held or "{}")
        self.end_call()

    def _rest_of_json_call(self) -> Steps[None]:
        """What follows the arguments. They are whole, so no fault there can spoil the call."""
        try:
            yield from self.skip_space()
            while (yield from self.expect(",", "}")) == ",":
                yield from self.skip_space()
                yield from self.json_string()
                yield from self.skip_space()
                yield from self.expect(":")
                yield from self.skip_space()
                yield from self.json_value()
                yield from self.skip_space()
        except CutError:
            self._at = len(self._text)
        except MalformedError:
            self._at = 0
        self.end_call()

    def json_calls(self) -> Steps[None]:
        """A JSON list of calls."""
        yield from self.expect("[")
        while True:
            yield from self.skip_space()
            yield from self.json_call()
            yield from self.skip_space()
            if (yield from self.expect(",", "]")) == "]":
                self.drop()
                return

    def _checked_name(self, name: str, known: bool) -> str:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise MalformedError from None
        if not name or (known and name not in self._functions):
            raise MalformedError
        return name


def _checked_arguments(text: str) -> str:
    """The text of a JSON object; null means no arguments."""
    if text == "null":
        return "{}"
    if not text.startswith("{"):
        raise MalformedError
    return text


def string_so_far(text: str) -> str:
    """The content of a JSON string whose end may lack, less an escape that is not whole."""
    for end in range(len(text), max(0, len(text) - _LONGEST_ESCAPE), -1):
        for closing in ("", '"'):
            try:
                content: str = json.loads(text[:end] + closing, strict=False)
                content.encode()
            except ValueError:
                continue
            return content
    return ""
