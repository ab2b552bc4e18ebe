from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import ClassVar

from axion.text.json_scanner import MAX_DEPTH
from axion.text.stream_parser import MalformedError, Steps
from axion.text.tool_calls.arguments import value_as_json
from axion.text.tool_calls.base import ToolCallParser, string_so_far
from axion.text.tool_calls.llama3 import JsonObject

# A string, whose end may lack, or a character.
_JSON_PIECE = re.compile(r'"(?:[^"\\]|\\.)*(?P<end>"|\\?\Z)|.', re.DOTALL)


class FunctionGemma(ToolCallParser):
    """Objects whose keys have no quotes and whose strings stand between two tokens.

        <start_function_call>call:f{x:1,y:<escape>text<escape>}<end_function_call>

    FunctionGemma (ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices).
    """

    quote: ClassVar[str] = "<escape>"
    json_arguments = False
    openings = ("<start_function_call>",)
    markers = ("<start_function_call>", "<end_function_call>", "<escape>")
    call_begin = "<start_function_call>call:"
    call_end = "<end_function_call>"

    @classmethod
    def write_arguments(cls, arguments: str) -> str:
        written, is_key = "", False
        brackets: list[str] = []
        for piece in _JSON_PIECE.finditer(arguments):
            text = piece[0]
            if text.startswith('"'):
                quote = "" if is_key else cls.quote
                written += quote + string_so_far(text) + (quote if piece["end"] == '"' else "")
                is_key = False
            elif not text.isspace():
                written += text
                if text in "{[":
                    brackets.append(text)
                elif text in "}]" and brackets:
                    brackets.pop()
                is_key = text in "{," and brackets[-1:] == ["{"]
        return written

    def calls(self, opening: str) -> Steps[None]:
        yield from self.skip_space()
        yield from self.expect("call:")
        name = yield from self.name()
        yield from self.expect("{")
        self.start_call(name)
        yield from self._object(1)
        self.end_call()
        yield from self.optional(self.call_end)

    def _value(self, depth: int) -> Steps[None]:
        yield from self.skip_space()
        if depth > MAX_DEPTH:
            raise MalformedError
        if (yield from self.accept(self.quote)):
            self.send_arguments('"')
            yield from self.send_until(self._send_string, self.quote)
            self.send_arguments('"')
        elif (yield from self.accept("{")):
            yield from self._object(depth + 1)
        elif (yield from self.accept("[")):
            yield from self._list(depth + 1)
        else:
            text, end = yield from self.until(",", "}", "]")
            self._at -= len(end)
            self.send_arguments(value_as_json(text.strip(), frozenset()))
        self.drop()

    def _object(self, depth: int) -> Steps[None]:
        self.send_arguments("{")
        separator = ""
        yield from self.skip_space()
        while not (yield from self.accept("}")):
            if separator:
                yield from self.expect(",")
                yield from self.skip_space()
            if (yield from self.accept(self.quote)):
                key, _ = yield from self.until(self.quote)
                yield from self.expect(":")
            else:
                key, _ = yield from self.until(":")
            self.send_arguments(separator + json.dumps(key.strip(), ensure_ascii=False) + ": ")
            self.drop()
            yield from self._value(depth)
            separator = ", "
            yield from self.skip_space()
        self.send_arguments("}")

    def _list(self, depth: int) -> Steps[None]:
        self.send_arguments("[")
        separator = ""
        yield from self.skip_space()
        while not (yield from self.accept("]")):
            if separator:
                yield from self.expect(",")
            self.send_arguments(separator)
            yield from self._value(depth)
            separator = ", "
            yield from self.skip_space()
        self.send_arguments("]")

    def _send_string(self, text: str) -> None:
        self.send_arguments(json.dumps(text, ensure_ascii=False)[1:-1])


class Gemma4(FunctionGemma):
    """The same with other tokens: `<|tool_call>call:f{x:<|"|>text<|"|>}<tool_call|>`.

    Gemma 4 (chat_template.jinja of google/gemma-4-31B-it).
    """

    quote = '<|"|>'
    openings = ("<|tool_call>",)
    markers = ("<|tool_call>", "<tool_call|>", '<|"|>')
    call_begin = "<|tool_call>call:"
    call_end = "<tool_call|>"


class Gemma3(JsonObject):
    """Python calls in a code block, or JSON objects: what Gemma 3 does that is asked for it.

    ```tool_code
    f(x=1, y="text")
    ```

    Gemma 3 has no format of its own (ai.google.dev/gemma/docs/capabilities/function-calling);
    a template that was written for one of these two gives it one.
    """

    openings = (*JsonObject.openings, "```tool_code")

    def calls(self, opening: str) -> Steps[None]:
        if opening != "```tool_code":
            yield from super().calls(opening)
            return
        code, _ = yield from self.until("```")
        calls = _python_calls(code)
        if any(name not in self._functions for name, _ in calls):
            raise MalformedError
        for name, arguments in calls:
            self.start_call(name)
            self.send_arguments(arguments)
            self.end_call()


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<word>-?[A-Za-z0-9_][A-Za-z0-9_.]*(?:(?<=[eE])[-+][0-9]+)?)
    | (?P<mark>[][(){},:=])
    )""",
    re.VERBOSE,
)
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")


def _python_calls(code: str) -> list[tuple[str, str]]:
    """Names and arguments (as JSON) of calls with keywords, each perhaps inside `print`.

    Raises:
        MalformedError: the code is something else.
    """
    calls: list[tuple[str, str]] = []
    tokens = _Tokens(code)
    while tokens.next:
        printed = tokens.next == "print" and tokens.take("print") and tokens.take("(")
        name = tokens.word()
        tokens.take("(")
        arguments = []
        while tokens.next != ")":
            key = tokens.word()
            tokens.take("=")
            arguments.append(f"{json.dumps(key)}: {_literal(tokens, 1)}")
            if tokens.next != ")":
                tokens.take(",")
        tokens.take(")")
        if printed:
            tokens.take(")")
        calls.append((name, "{" + ", ".join(arguments) + "}"))
    if not calls:
        raise MalformedError
    return calls


class _Tokens:
    """The tokens of a piece of Python, one to look at."""

    def __init__(self, code: str) -> None:
        self._tokens = self._split(code.strip())
        self.next = next(self._tokens, "")

    def take(self, expected: str = "") -> str:
        token = self.next
        if not token or (expected and token != expected):
            raise MalformedError
        self.next = next(self._tokens, "")
        return token

    def word(self) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", self.next):
            raise MalformedError
        return self.take()

    @staticmethod
    def _split(code: str) -> Iterator[str]:
        at = 0
        while at < len(code):
            token = _TOKEN.match(code, at)
            if token is None:
                raise MalformedError
            yield token[0].strip()
            at = token.end()


def _literal(tokens: _Tokens, depth: int) -> str:
    """The JSON of a Python literal."""
    token = tokens.take()
    if token[0] in "\"'":
        try:
            value = ast.literal_eval(token)  # one string: nothing to nest
            return json.dumps(value, ensure_ascii=False)
        except (ValueError, SyntaxError):
            raise MalformedError from None
    if token in ("[", "(", "{") and depth < MAX_DEPTH:
        end = {"[": "]", "(": ")", "{": "}"}[token]
        items = []
        while tokens.next != end:
            item = _literal(tokens, depth + 1)
            if token == "{":
                if not item.startswith('"'):
                    raise MalformedError
                tokens.take(":")
                item += ": " + _literal(tokens, depth + 1)
            items.append(item)
            if tokens.next != end:
                tokens.take(",")
        tokens.take(end)
        return ("{%s}" if token == "{" else "[%s]") % ", ".join(items)
    constant = _CONSTANTS.get(token, token)
    if constant == token and not _NUMBER.fullmatch(token):
        raise MalformedError
    return constant
