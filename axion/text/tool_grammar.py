"""Grammars of answers that call functions, in the way in which a model family writes calls."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, Protocol

from axion.errors import InvalidRequestError
from axion.text.grammar import json_grammar, source
from axion.text.tokenizer import Tokenizer
from axion.text.tool_arguments import argument_rules
from axion.text.tool_calls import ToolCallParser
from axion.types import Grammar

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_ANY_PARAMETERS = {"type": "object"}


class ToolFormat(Protocol):
    """How a model family writes calls.

    `calls_begin (call_begin NAME arguments_begin ARGUMENTS call_end)+ calls_end`, with
    `call_separator` between two calls.

    Attributes:
        json_arguments: whether ARGUMENTS is a JSON object.
        openings: what calls begin with, wherever they are in the answer; a format that begins
            with none of them has calls only at the beginning of an answer.
    """

    @property
    def openings(self) -> tuple[str, ...]: ...
    @property
    def json_arguments(self) -> bool: ...
    @property
    def calls_begin(self) -> str: ...
    @property
    def call_begin(self) -> str: ...
    @property
    def arguments_begin(self) -> str: ...
    @property
    def call_end(self) -> str: ...
    @property
    def call_separator(self) -> str: ...
    @property
    def calls_end(self) -> str: ...


class Function(NamedTuple):
    """A function that may be called.

    Attributes:
        parameters: JSON schema of its arguments; None if it has none.
        strict: the arguments follow the schema wherever it is called, and a schema that cannot
            be enforced is refused.
    """

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool = False


def tool_grammar(
    format: ToolFormat,
    functions: list[Function],
    tokenizer: Tokenizer,
    *,
    required: bool,
    parallel: bool,
    answer: Grammar | None = None,
) -> Grammar:
    """The grammar of an answer with calls.

    Args:
        required: the answer is calls and nothing else. Their arguments follow the schemas even
            of functions that are not strict, as far as those can be enforced.
        parallel: whether there may be several calls.
        answer: what an answer without calls must match; by default it is any text, and calls
            may follow some.

    Raises:
        InvalidRequestError: `answer` is not what its kind says, or not to be told from a call.
    """
    lark = _Lark(format, functions, tokenizer, parallel=parallel)
    for i, function in enumerate(functions):
        lark.add_arguments(f"arguments_{i}", function, required)
    grammars: list[dict[str, Any]] = [{}]
    if required:
        lark.rules.append(f"start: {lark.calls()}")
    elif answer is not None:
        if (format.calls_begin + format.call_begin).startswith("{"):
            raise InvalidRequestError(
                "This model writes calls as JSON: an answer of a given form cannot be told from "
                "them. Ask for one of the two."
            )
        [other] = json.loads(source(answer))["grammars"]
        grammars.append({**other, "name": "answer"})
        lark.rules.append(f"start: {lark.calls()} | @answer")
    else:
        lark.add_text()
    grammars[0]["lark_grammar"] = "\n".join(lark.rules)
    return Grammar("llguidance", json.dumps({"grammars": grammars}))


def arguments_grammar(
    format: ToolFormat, function: Function, tokenizer: Tokenizer, *, required: bool
) -> Grammar:
    """What the arguments of a call are held to.

    Raises:
        InvalidRequestError: the schema has what the format cannot be held to.
    """
    lark = _Lark(format, [function], tokenizer, parallel=False)
    lark.add_arguments("start", function, required)
    return Grammar(
        "llguidance", json.dumps({"grammars": [{"lark_grammar": "\n".join(lark.rules)}]})
    )


class _Lark:
    """The rules of a grammar, in Lark's syntax. Rule `arguments_I` belongs to function I."""

    def __init__(
        self,
        format: ToolFormat,
        functions: list[Function],
        tokenizer: Tokenizer,
        *,
        parallel: bool,
    ) -> None:
        self.rules: list[str] = []
        self._format = format
        self._functions = functions
        self._parallel = parallel
        self._special = {
            tokenizer.id_to_token_bytes(token_id).decode(errors="replace"): token_id
            for token_id in tokenizer.special_token_ids
        }
        longest_first = sorted(filter(None, self._special), key=len, reverse=True)
        self._split = re.compile("(%s)" % ("|".join(map(re.escape, longest_first)) or "(?!)"))

    def add_arguments(self, name: str, function: Function, required: bool) -> None:
        """The rule `name`: the arguments of a function."""
        schema: dict[str, Any] = _ANY_PARAMETERS
        if function.strict or required:
            schema = _NO_PARAMETERS if function.parameters is None else function.parameters
        # Arguments are an object, also where the schema does not say so.
        schema, lenient = {**schema, "type": "object"}, not function.strict
        if self._format.json_arguments:
            schema = json_grammar(schema, lenient=lenient)
            self.rules.append(f"{name}: %json {json.dumps(schema)}")
        else:
            assert isinstance(self._format, type)
            assert issubclass(self._format, ToolCallParser)
            self.rules += argument_rules(
                self._format, schema, self._text, name=name, lenient=lenient
            )

    def calls(self, opening: str = "") -> str:
        """All calls of an answer, of which `opening` is there already."""
        format = self._format
        first = self._call((format.calls_begin + format.call_begin).removeprefix(opening))
        more = ""
        if self._parallel:
            more = f"({self._text(format.call_separator)} {self._call(format.call_begin)})*"
        return f"{first} {more} {self._text(format.calls_end)}"

    def add_text(self) -> None:
        """The rules of an answer that is text, or has calls after some."""
        format = self._format
        begin = format.calls_begin + format.call_begin
        opening = next((o for o in format.openings if begin.startswith(o)), None)
        if opening is None:
            # Text that does not begin like a call; a format without a beginning begins with names.
            names = "|".join(function.name for function in self._functions)
            call = re.escape(begin[:1]) or f"({names}) ?\\n"
            self.rules += [
                f"start: {self.calls()} | TEXT",
                f"TEXT: /(?s:.*)/ & ~/\\s*{call}(?s:.*)/",
            ]
            return
        if opening in self._special:
            self.rules.append(f"open: TEXT {self._text(opening)}")
        else:
            self.rules.append(f"open[lazy]: TEXT {self._text(opening)}")
        start = "calls* TEXT" if self._parallel else "calls | TEXT"
        self.rules += [
            f"start: {start}",
            f"calls: open {self.calls(opening)}",
            "TEXT: /(?s:.*)/",
        ]

    def _call(self, begin: str) -> str:
        format = self._format
        calls = [
            f"{self._text(begin + function.name + format.arguments_begin)} arguments_{i} "
            f"{self._text(format.call_end)}"
            for i, function in enumerate(self._functions)
        ]
        return f"({' | '.join(calls)})"

    def _text(self, text: str) -> str:
        # A special token is no text to llguidance: it has a notation of its own.
        return " ".join(
            f"<[{self._special[part]}]>" if part in self._special else json.dumps(part)
            for part in self._split.split(text)
            if part
        )
