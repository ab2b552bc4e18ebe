"""Grammars of arguments that are not JSON: what they let a model write is what was asked for."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher

from axion.errors import InvalidRequestError
from axion.text.events import ArgumentsDelta, CallStart
from axion.text.grammar import GrammarCompiler
from axion.text.tokenizer import Tokenizer, load_tokenizer
from axion.text.tool_calls import FORMATS, ToolCallParser
from axion.text.tool_calls.arguments import TaggedArguments
from axion.text.tool_calls.glm4 import Glm45
from axion.text.tool_calls.qwen3_coder import Qwen3Coder, SeedOss
from axion.text.tool_grammar import Function, arguments_grammar, tool_grammar
from tests.json_schemas import json_schema

WRITERS = [format for _, format in FORMATS if not format.json_arguments]
ARGUMENTS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 9},
        "unit": {"enum": ["C", "F", None]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "place": {"$ref": "#/$defs/place"},
        "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "in": {"$ref": "#/$defs/place"}},
            "additionalProperties": False,
        }
    },
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, (0,))


def draw(matcher: LLMatcher, tokenizer: Tokenizer, rng: random.Random, most: int) -> str | None:
    """A text that a model might write under a grammar; None if it comes to no end."""
    words = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
    written = b""
    for _ in range(most):
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        assert not matcher.is_error(), matcher.get_error()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        may_end, bits[0] = bits[0], 0
        token_ids = np.nonzero(bits)[0]
        if not len(token_ids) or (may_end and rng.random() < 0.5):
            return written.decode(errors="replace")
        # Short tokens, and marks rather than letters: else strings hardly ever end.
        weights = [
            3.0 if tokenizer.id_to_token_bytes(int(i)) in (b"<", b"\n", b'"', b"}", b"]") else 0.1
            for i in token_ids
        ]
        token_id = int(rng.choices(token_ids.tolist(), weights)[0])
        assert matcher.consume_token(token_id)
        written += tokenizer.id_to_token_bytes(token_id)
        if (forced := matcher.compute_ff_tokens()) and matcher.consume_tokens(forced):
            written += b"".join(map(tokenizer.id_to_token_bytes, forced))
        if matcher.is_stopped():
            return written.decode(errors="replace")
    return None


def read(
    format: type[ToolCallParser], text: str, functions: dict[str, Any]
) -> list[tuple[str, Any]]:
    parser = format(functions)
    calls: list[tuple[str, str]] = []
    for event in parser.push(text) + parser.flush():
        if isinstance(event, CallStart):
            calls.append((event.name, ""))
        elif isinstance(event, ArgumentsDelta):
            calls[-1] = calls[-1][0], calls[-1][1] + event.text
        elif hasattr(event, "text"):
            raise AssertionError(f"{event.text!r} is no call, of {text!r}")
    return [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("format", WRITERS)
def test_what_a_grammar_lets_a_model_write_is_read_as_calls_that_validate(
    format: type[ToolCallParser], compiler: GrammarCompiler, tokenizer: Tokenizer
):
    rng = random.Random(3)
    schemas = [ARGUMENTS] * 5
    while len(schemas) < 40:
        schema = json_schema(rng)
        if schema.get("type") == "object":
            schemas.append(schema)
    num_read = 0
    for schema in schemas:
        function = Function("f", schema, strict=True)
        try:
            matcher = compiler.compile(
                tool_grammar(format, [function], tokenizer, required=True, parallel=True)
            )
        except InvalidRequestError as error:
            if not re.search("not supported|no value|excl", error.message):
                raise
            continue
        for _ in range(3):
            text = draw(matcher.deep_copy(), tokenizer, rng, 400)
            if text is not None and "\ufffd" not in text:
                calls = read(format, text, {"f": schema})
                assert calls
                for name, arguments in calls:
                    assert name == "f"
                    jsonschema.validate(arguments, schema)
                num_read += 1
    assert num_read > 30


@pytest.mark.parametrize("format", [Glm45, Qwen3Coder, SeedOss])
def test_a_closing_tag_inside_of_json_does_not_end_the_argument(format: type[TaggedArguments]):
    value = {"note": f"a {format.argument_end} b"}
    text = (
        f"{format.call_begin}f{format.arguments_begin}{format.argument_begin}x"
        f"{format.value_begin}{json.dumps(value)}{format.argument_end}{format.call_end}"
    )
    schema = {"properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "object"}}}
    assert read(format, text, {"f": schema}) == [("f", {"x": value})]


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a"},
        {"anyOf": [{"$ref": "#/$defs/b"}] * 2},
        {"type": "array", "items": {"$ref": "#/$defs/c"}},
    ],
)
def test_schemas_that_refer_in_circles_end_in_a_grammar_or_an_error(
    format: type[ToolCallParser],
    schema: dict[str, Any],
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
):
    definitions: dict[str, Any] = {
        "a": {"$ref": "#/$defs/a"},
        "b": {"anyOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]},
        "c": {"type": "array", "items": {"$ref": "#/$defs/c"}, "maxItems": 2},
    }
    parameters = {"properties": {"x": schema}, "required": ["x"], "$defs": definitions}
    function = Function("f", parameters, strict=True)
    try:
        compiler.compile(arguments_grammar(format, function, tokenizer, required=True))
    except InvalidRequestError:
        assert "/c" not in str(schema)  # nothing can be written for the others


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "pattern": "^a"}, '"pattern"'),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, '"oneOf"'),
        ({"allOf": [{"type": "string"}]}, '"allOf"'),
    ],
)
def test_what_cannot_be_written_is_refused_by_name_if_the_function_is_strict(
    format: type[ToolCallParser],
    schema: dict[str, Any],
    said: str,
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
):
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    with pytest.raises(InvalidRequestError, match=said):
        arguments_grammar(format, Function("f", parameters, strict=True), tokenizer, required=True)
    lenient = arguments_grammar(format, Function("f", parameters), tokenizer, required=True)
    compiler.compile(lenient)


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": [1]},
        {"properties": {"x": {"type": "string", "minLength": "long"}}},
        {"properties": {"x": {"enum": 3}}},
        {"properties": {"x": {"type": "array", "maxItems": "all"}}},
        {"required": 7},
        {"required": [[]]},
    ],
)
def test_what_is_no_schema_is_refused(
    format: type[ToolCallParser],
    schema: dict[str, Any],
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
):
    with pytest.raises(InvalidRequestError):
        compiler.compile(arguments_grammar(format, Function("f", schema), tokenizer, required=True))


@pytest.mark.parametrize("format", WRITERS)
def test_a_function_that_is_held_to_nothing_may_get_anything(
    format: type[ToolCallParser], compiler: GrammarCompiler, tokenizer: Tokenizer
):
    strict = Function("g", ARGUMENTS, strict=True)
    grammar = tool_grammar(
        format, [Function("f"), strict], tokenizer, required=False, parallel=True
    )
    matcher = compiler.compile(grammar)
    assert matcher.is_accepting(), "an answer needs no call"
