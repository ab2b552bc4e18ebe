"""Arguments that a model does not write as JSON."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from axion.text.json_scanner import JsonScanner, State
from axion.text.stream_parser import CutError, MalformedError, Steps
from axion.text.tool_calls.base import ToolCallParser, string_so_far

_MAX_SCHEMA_DEPTH = 20
_NESTED = {"object", "array"}
_SEPARATORS = re.compile(r"[\s,:]*")
_TYPE_BY_FIRST = {
    '"': "string",
    "{": "object",
    "[": "array",
    "t": "boolean",
    "f": "boolean",
    "n": "null",
}


class TaggedArguments(ToolCallParser):
    """A format whose arguments stand between tags, strings without quotes.

    What an argument is follows from the function's schema: a string is told as it comes,
    anything else once it is whole.

    Attributes:
        argument_begin: with the next two, how the model's template writes one argument:
            `argument_begin KEY value_begin VALUE argument_end`.
    """

    json_arguments = False
    argument_begin: ClassVar[str] = ""
    value_begin: ClassVar[str] = ""
    argument_end: ClassVar[str] = ""

    @classmethod
    def write_arguments(cls, arguments: str) -> str:
        decoder = json.JSONDecoder(strict=False)
        written, at = "", arguments.find("{") + 1
        while at:
            at = _SEPARATORS.match(arguments, at).end()  # type: ignore[union-attr]
            if arguments[at : at + 1] in ("", "}"):
                break
            try:
                key, at = decoder.raw_decode(arguments, at)
            except ValueError:
                return written + cls.argument_begin + string_so_far(arguments[at:])
            written += f"{cls.argument_begin}{key}{cls.value_begin}"
            at = _SEPARATORS.match(arguments, at).end()  # type: ignore[union-attr]
            is_string = arguments.startswith('"', at)
            try:
                _, end = decoder.raw_decode(arguments, at)
            except ValueError:
                end = len(arguments)
                is_whole = False
            else:
                # A number may go on.
                is_whole = end < len(arguments) or arguments[-1] in '"}]'
            value = arguments[at:end]
            written += string_so_far(value) if is_string else value
            if not is_whole:
                break
            written += cls.argument_end
            at = end
        return written

    def tagged_arguments(self, name: str, end: str) -> Steps[None]:
        """The arguments of a call that begins with the first of them, up to `end`."""
        schema = self._functions.get(name, {})
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        separator = "{"
        while True:
            yield from self.skip_space()
            if not self._in_call:
                start = self._at
                yield from self.expect(self._first_of_argument, end)
                self._at = start
                self.start_call(name)
            try:
                if (yield from self.expect(self._first_of_argument, end)) == end:
                    break
                key = yield from self.argument_key()
            except MalformedError as error:
                if isinstance(error, CutError) or separator == "{":
                    raise
                self._at = 0  # the arguments before it are whole
                break
            self.send_arguments(f"{separator}{_json(key)}: ")
            self.drop()
            yield from self.argument_value(json_types(properties.get(key), schema))
            self.drop()
            separator = ", "
        self.send_arguments("{}" if separator == "{" else "}")
        self.end_call()

    @property
    def _first_of_argument(self) -> str:
        return self.argument_begin.strip()

    @abstractmethod
    def argument_key(self) -> Steps[str]: ...

    @abstractmethod
    def argument_value(self, types: frozenset[str]) -> Steps[None]: ...

    def value_until(self, types: frozenset[str], *ends: str) -> Steps[None]:
        """Tell a value that one of `ends` ends."""
        if types == {"string"}:
            self.send_arguments('"')
            yield from self.send_until(self.send_string, *ends)
            self.send_arguments('"')
        else:
            text = (yield from self._json_until(*ends)) if types & _NESTED else ""
            if not text:
                text, _ = yield from self.until(*ends)
            self.send_arguments(value_as_json(text, types))

    def _json_until(self, *ends: str) -> Steps[str]:
        """An object or a list, whose strings may have `ends` in them; nothing if none comes."""
        start = self._at
        try:
            yield from self.skip_space()
            if (yield from self.peek()) in ("{", "["):
                text = yield from self.json_value()
                yield from self.skip_space()
                yield from self.expect(*ends)
                return text
        except MalformedError:
            pass
        self._at = start
        return ""

    def send_string(self, text: str) -> None:
        """A piece of a string in the arguments."""
        self.send_arguments(_json(text)[1:-1])


def json_types(schema: Any, root: Mapping[str, Any] | None = None) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says; empty for any.

    Integers count as numbers.

    Args:
        root: the schema that it is a part of, and that it may refer to.
    """
    return frozenset(_types(schema, root or {}, {}, 0))


def resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """What a `$ref` points to inside `root`; None if nothing is there."""
    target: Any = root
    for part in str(schema["$ref"]).removeprefix("#").split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        target = target.get(part) if isinstance(target, Mapping) else None
    return target


def value_as_json(text: str, types: frozenset[str]) -> str:
    """The JSON of a value that stands without quotes where it is a string.

    What reads as JSON of another type that is allowed is that; everything else is a string.
    """
    stripped = text.strip() + " "  # so that a number ends
    scanner = JsonScanner()
    end, value = scanner.scan(stripped, 0)
    if scanner.state is State.DONE and not stripped[end:].strip():
        kind = _TYPE_BY_FIRST.get(value[0], "number")
        if kind != "string" and (kind in types or not types):
            return value
    return _json(text)


def _types(
    schema: Any, root: Mapping[str, Any], known: dict[str, set[str]], depth: int
) -> set[str]:
    if not isinstance(schema, Mapping) or depth > _MAX_SCHEMA_DEPTH:
        return set()
    match schema:
        case {"$ref": str(reference)}:
            if reference not in known:
                known[reference] = set()  # where it refers to itself
                known[reference] = _types(resolved(schema, root), root, known, depth + 1)
            return known[reference]
        case {"type": str(kind)}:
            return {_plain(kind)}
        case {"type": list(kinds)}:
            return {_plain(kind) for kind in kinds if isinstance(kind, str)}
        case {"enum": list(values)}:
            return {_type_of(value) for value in values}
        case {"const": value}:
            return {_type_of(value)}
        case {"anyOf": list(branches)} | {"oneOf": list(branches)}:
            of_branches = [_types(branch, root, known, depth + 1) for branch in branches]
            return set().union(*of_branches) if all(of_branches) else set()
    return set()


def _plain(kind: str) -> str:
    return "number" if kind == "integer" else kind


def _type_of(value: Any) -> str:
    return _TYPE_BY_FIRST.get(json.dumps(value)[0], "number")


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
