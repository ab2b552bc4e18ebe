"""Grammars of arguments that a model does not write as JSON, made from their JSON schema.

A property of a schema is written or not, in the schema's order; what the schema does not name is
never written. What the family's own parser would not read back is not expressed.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from axion.errors import InvalidRequestError
from axion.text.events import ArgumentsDelta
from axion.text.grammar import json_grammar
from axion.text.tool_calls import ToolCallParser
from axion.text.tool_calls.arguments import TaggedArguments, json_types, resolved
from axion.text.tool_calls.gemma import FunctionGemma

_ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions"),
}
_MAX_SCHEMAS = 2_000
# A type's keywords that are expressed; those of numbers are llguidance's own affair.
_KEYWORDS = {
    "string": {"minLength", "maxLength"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_SCALARS = {"type": ["number", "boolean", "null"]}


def argument_rules(
    format: type[ToolCallParser],
    schema: dict[str, Any],
    text: Callable[[str], str],
    *,
    name: str,
    lenient: bool,
) -> list[str]:
    """Lark rules of the arguments of a function, the first of them called `name`.

    Args:
        schema: of an object.
        text: the notation of a literal text, which may have special tokens in it.
        lenient: leave to the model what cannot be expressed, instead of refusing it.

    Raises:
        InvalidRequestError: what cannot be expressed.
    """
    kind = _Objects if issubclass(format, FunctionGemma) else _Tagged
    try:
        return kind(format, schema, text, name=name, lenient=lenient).rules
    except RecursionError:
        raise InvalidRequestError("it is nested too deeply.") from None
    except (AttributeError, TypeError, ValueError):
        raise InvalidRequestError("it is not a JSON schema.") from None


class _Rules(ABC):
    def __init__(
        self,
        format: type[ToolCallParser],
        schema: dict[str, Any],
        text: Callable[[str], str],
        *,
        name: str,
        lenient: bool,
    ) -> None:
        self.rules: list[str] = []
        self._format: Any = format
        self._root = schema
        self._text = text
        self._name = name
        self._lenient = lenient
        self._num_schemas = 0
        self.rules.append(f"{name}: {self._arguments()}")

    @abstractmethod
    def _arguments(self) -> str: ...

    def _rule(self, expression: str = "") -> str:
        name = f"{self._name}_{len(self.rules)}"
        self.rules.append(f"{name}: {expression}")
        return name

    def _terminal(self, expression: str) -> str:
        name = f"{self._name}_{len(self.rules)}".upper()
        self.rules.append(f"{name}: {expression}")
        return name

    def _json(self, schema: dict[str, Any]) -> str:
        whole: dict[str, Any] = {"$defs": {}, "definitions": {}}
        whole |= {key: self._root[key] for key in whole if key in self._root}
        schema = json_grammar(whole | schema, lenient=self._lenient)
        return self._rule(f"%json {json.dumps(schema)}")

    def _refuse(self, fault: str) -> None:
        if not self._lenient:
            raise InvalidRequestError(
                f"{fault} is not supported in the form in which this model writes arguments."
            )

    def _check(self, schema: Mapping[str, Any], *keywords: str) -> None:
        for keyword in schema:
            if keyword not in _ANNOTATIONS and keyword not in keywords:
                self._refuse(f"the keyword {json.dumps(keyword)}")

    def _branches(self, schema: Any) -> Iterator[dict[str, Any]]:
        """The alternatives of a schema: each has one type, or is a constant, or allows anything."""
        self._num_schemas += 1
        if self._num_schemas > _MAX_SCHEMAS:  # by references, a short schema may have many
            raise InvalidRequestError("it is too complex.")
        if schema is False:
            self._refuse('the schema "false"')
        if not isinstance(schema, Mapping):
            yield {}
        elif "$ref" in schema:
            self._check(schema, "$ref")
            yield from self._referred(schema)
        elif "enum" in schema or "const" in schema:
            self._check(schema, "enum", "const", "type")
            types = json_types({"type": schema["type"]}) if "type" in schema else frozenset()
            for value in schema.get("enum", [schema.get("const")]):
                if not types or json_types({"const": value}) <= types:
                    yield {"const": value}
        elif "anyOf" in schema:
            self._check(schema, "anyOf", "type")
            for branch in schema["anyOf"]:
                yield from self._branches(branch)
        elif isinstance(kinds := schema.get("type"), list):
            for kind in kinds:
                yield {**schema, "type": kind}
        else:
            if kinds is None:
                self._check(schema)
            yield {**schema}

    def _referred(self, schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The alternatives of what a reference points to."""
        return self._branches(resolved(schema, self._root))

    def _is_any_object(self, schema: Mapping[str, Any]) -> bool:
        """Whether it names no property and forbids none."""
        others = schema.get("additionalProperties")
        if schema.get("properties") or schema.get("required") or others is False:
            return False
        self._check(schema, "type", *_KEYWORDS["object"])
        if isinstance(others, Mapping) and others:
            self._refuse('the keyword "additionalProperties" without "properties"')
        return True

    def _properties(self, schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
        """Name, schema and whether it must be there of what an object may have."""
        self._check(schema, "type", *_KEYWORDS["object"])
        properties = dict(schema.get("properties") or {})
        required = schema.get("required") or ()
        for key in required:
            if key not in properties:
                if schema.get("additionalProperties") is False:
                    self._refuse(f"the required property {json.dumps(key)}, which is forbidden,")
                properties[key] = schema.get("additionalProperties", {})
        found = []
        for key, value in properties.items():
            if self._reads_back(key, {"type": "string"}, "x", "x"):
                found.append((key, value, key in required))
            else:
                self._refuse(f"the property name {json.dumps(key)}")
        return found

    def _free(self, forbidden: str, schema: Mapping[str, Any], *, trimmed: bool = False) -> str:
        """A regex of any text of the length that a schema allows, without `forbidden` in it.

        Args:
            trimmed: it neither begins nor ends with a line feed.
        """
        self._check(schema, "type", *_KEYWORDS["string"])
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        text = _any_text(least, most)
        if trimmed and most != 0:
            text = r"[^\n]"
            if most != 1:
                rest = f"{_any_text(max(least - 2, 0), most and most - 2)}{text}"
                text += rest if least > 1 else f"({rest})?"
            text = text if least else f"({text})?"
        return f"/{text}/ & ~/(?s:.*){_escaped(forbidden)}(?s:.*)/"

    def _reads_back(self, key: str, schema: Any, written: str, value: Any) -> bool:
        """Whether the parser makes of a written argument what was meant by it."""
        functions = {"f": {**self._root, "properties": {key: schema}}}
        parser = self._format(functions)
        call = f"{parser.call_begin}f{parser.arguments_begin}{self._written(key, written)}"
        events = parser.push(call + parser.call_end) + parser.flush()
        arguments = "".join(e.text for e in events if isinstance(e, ArgumentsDelta))
        return arguments == json.dumps({key: value}, ensure_ascii=False)

    @abstractmethod
    def _written(self, key: str, value: str) -> str: ...


class _Tagged(_Rules):
    """Arguments between tags, strings without quotes (`TaggedArguments`)."""

    _format: type[TaggedArguments]

    def _written(self, key: str, value: str) -> str:
        format = self._format
        return f"{format.argument_begin}{key}{format.value_begin}{value}{format.argument_end}"

    def _arguments(self) -> str:
        format = self._format
        begin, between = format.argument_begin, format.value_begin
        if self._is_any_object(self._root):
            name = self._terminal(r"/[A-Za-z_][A-Za-z0-9_]*/")
            value = self._free_value({}, {})
            return f"({self._text(begin)} {name} {self._text(between)} {value})*"
        return " ".join(
            f"({self._text(begin + key + between)} {self._value(key, schema)})"
            f"{'' if required else '?'}"
            for key, schema, required in self._properties(self._root)
        )

    def _value(self, key: str, schema: Any) -> str:
        branches = list(self._branches(schema))
        free = [b for b in branches if b.get("type", "string") == "string" and "const" not in b]
        end = self._format.argument_end
        if free:
            # Such a text may also be read as another type that is allowed: then anything of it
            # must be right.
            for branch in branches:
                kind = branch.get("type")
                if kind == "integer" or "const" in branch:
                    self._refuse("a choice of any string or an integer or a constant")
                elif kind not in ("string", None):
                    self._check(branch, "type")
            if len(free) > 1:
                for branch in free:
                    self._check(branch, "type")
            return self._free_value(free[0] if len(free) == 1 else {}, schema)
        values = []
        for branch in branches:
            if "const" not in branch:
                values.append(f"{self._json(branch)} {self._text(end)}")
                continue
            value = branch["const"]
            written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            if self._reads_back(key, schema, written, value):
                values.append(self._text(written + end))
            else:
                self._refuse(f"the value {json.dumps(value)}")
        return f"({' | '.join(values or [self._free_value({}, schema)])})"

    def _free_value(self, branch: Mapping[str, Any], schema: Any) -> str:
        end = self._format.argument_end
        string = {"type": "string"}
        # Where the parser takes line feeds next to the tags for the template's, none is written.
        trimmed = not self._reads_back("x", string, "\nx\n", "\nx\n")
        text = self._free(end.strip(), branch, trimmed=trimmed)
        if self._text(end).startswith("<["):
            return f"{self._terminal(text)} {self._text(end)}"
        return self._terminal(f"({text}) {json.dumps(end)}")


class _Objects(_Rules):
    """Objects without quotes around keys, strings between tokens (`FunctionGemma`)."""

    _format: type[FunctionGemma]

    def _written(self, key: str, value: str) -> str:
        return f"{{{key}:{self._format.quote}{value}{self._format.quote}}}"

    def _arguments(self) -> str:
        self._any = ""
        self._definitions: dict[str, str] = {}
        return self._object(self._root)

    def _value(self, schema: Any) -> str:
        return f"({' | '.join(map(self._branch, self._branches(schema)))})"

    def _referred(self, schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"$ref": str(schema["$ref"])}

    def _reference(self, schema: dict[str, Any]) -> str:
        reference = schema["$ref"]
        if reference not in self._definitions:
            # Named before it is made: it may refer to itself.
            name, at = self._rule(), len(self.rules) - 1
            self._definitions[reference] = name
            self.rules[at] += self._value(resolved(schema, self._root))
        return self._definitions[reference]

    def _branch(self, branch: dict[str, Any]) -> str:
        if "$ref" in branch:
            return self._reference(branch)
        if "const" in branch:
            return self._text(self._literal(branch["const"]))
        match branch.get("type"):
            case None:
                return self._anything()
            case "string":
                quote = self._text(self._format.quote)
                text = self._terminal(self._free(self._format.quote, branch))
                return f"{quote} {text} {quote}"
            case "object":
                return self._object(branch)
            case "array":
                return self._array(branch)
        return self._json(branch)

    def _literal(self, value: Any) -> str:
        match value:
            case str():
                if not self._reads_back("x", {}, value, value):
                    self._refuse(f"the value {json.dumps(value)}")
                return f"{self._format.quote}{value}{self._format.quote}"
            case list():
                return f"[{','.join(map(self._literal, value))}]"
            case dict():
                for key in value:
                    if not self._reads_back(key, {}, "x", "x"):
                        self._refuse(f"the property name {json.dumps(key)}")
                members = (f"{key}:{self._literal(item)}" for key, item in value.items())
                return f"{{{','.join(members)}}}"
        return json.dumps(value)

    def _object(self, schema: Mapping[str, Any]) -> str:
        if self._is_any_object(schema):
            return self._any_object()
        # From the last member to the first: what may follow where something is written already,
        # and where nothing is.
        after, at_first = '""', '""'
        for key, value, required in reversed(self._properties(schema)):
            member = self._rule(f"{self._text(key + ':')} {self._value(value)}")
            if required:
                at_first = f"{member} {after}"
                after = self._rule(f'"," {member} {after}')
            else:
                at_first = self._rule(f"{member} {after} | {at_first}")
                after = self._rule(f'("," {member})? {after}')
        return f'"{{" {at_first} "}}"'

    def _array(self, schema: Mapping[str, Any]) -> str:
        self._check(schema, "type", *_KEYWORDS["array"])
        item = self._rule(self._value(schema.get("items", {})))
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        if most == 1:
            items = item
        else:
            more = f"{max(least - 1, 0)},{'' if most is None else most - 1}"
            items = f'({item} ("," {item}){{{more}}})'
        return f'"[" {items}{"" if least else "?"} "]"'

    def _anything(self) -> str:
        if not self._any:
            self._any, at = self._rule(), len(self.rules) - 1
            string = self._branch({"type": "string"})
            many = f'{self._any} ("," {self._any})*'
            self.rules[at] += (
                f'{string} | {self._json(_SCALARS)} | {self._any_object()} | "[" ({many})? "]"'
            )
        return self._any

    def _any_object(self) -> str:
        key = self._terminal(r"/[A-Za-z_][A-Za-z0-9_]*/")
        member, at = self._rule(), len(self.rules) - 1
        self.rules[at] += f'{key} ":" {self._anything()}'
        return f'"{{" ({member} ("," {member})*)? "}}"'


def _any_text(least: int, most: int | None) -> str:
    return f"(?s:.{{{least},{'' if most is None else most}}})"


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
