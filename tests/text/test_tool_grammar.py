"""Grammars of answers that call functions, against answers that models write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from llguidance import LLMatcher

from axion.errors import InvalidRequestError
from axion.text.events import ArgumentsDelta, CallStart
from axion.text.grammar import GrammarCompiler
from axion.text.tokenizer import Tokenizer, load_tokenizer
from axion.text.tool_calls.hermes import Hermes
from axion.text.tool_grammar import Function, ToolFormat, arguments_grammar, tool_grammar
from axion.types import Grammar

ARGUMENTS = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/digit"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
}
FUNCTIONS = [Function("f", ARGUMENTS, strict=True), Function("g")]
ANSWER = Grammar("json_schema", '{"type": "array", "items": {"type": "integer"}}')


class Format(NamedTuple):
    openings: tuple[str, ...] = ()
    calls_begin: str = ""
    call_begin: str = ""
    arguments_begin: str = ""
    call_end: str = ""
    call_separator: str = ""
    calls_end: str = ""
    json_arguments: bool = True

    def write(self, *calls: tuple[str, str]) -> str:
        written = self.call_separator.join(
            self.call_begin + name + self.arguments_begin + arguments + self.call_end
            for name, arguments in calls
        )
        return self.calls_begin + written + self.calls_end


HERMES = Format(**{name: getattr(Hermes, name) for name in Format._fields})
FORMATS = {
    "hermes": HERMES,
    # A list after a special token.
    "list": Format(("<|user|>",), '<|user|>[', '{"name": "', '", "arguments": ', "}", ", ", "]"),
    # Special tokens all over.
    "tokens": Format(("<|user|>",), "<|user|>", "<|tool|>", "<|system|>", "<|tool|>", "\n", "!"),
    # Nothing that could not be an answer's beginning.
    "json": Format((), "", '{"name": "', '", "parameters": ', "}", "; "),
    "name": Format((), "", "", "\n", "", "<|assistant|>"),
}  # fmt: skip
RIGHT, WRONG, OTHER = ("f", '{"x": 7}'), ("f", '{"x": 70}'), ("g", "{}")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, (0,))


def matches(matcher: LLMatcher, tokenizer: Tokenizer, text: str) -> bool:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    if matcher.validate_tokens(token_ids) < len(token_ids):
        return False
    return matcher.deep_copy().consume_tokens(token_ids) and _ends(matcher, token_ids)


def _ends(matcher: LLMatcher, token_ids: list[int]) -> bool:
    copy = matcher.deep_copy()
    return copy.consume_tokens(token_ids) and copy.is_accepting()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_calls_and_nothing_else(
    name: str, parallel: bool, compiler: GrammarCompiler, tokenizer: Tokenizer
):
    format = FORMATS[name]
    matcher = compiler.compile(
        tool_grammar(format, FUNCTIONS, tokenizer, required=True, parallel=parallel)
    )

    def allowed(text: str) -> bool:
        return matches(matcher, tokenizer, text)

    assert allowed(format.write(RIGHT))
    assert allowed(format.write(OTHER))
    assert allowed(format.write(RIGHT, OTHER, RIGHT)) == parallel
    assert not allowed(format.write(WRONG))
    assert not allowed(format.write(RIGHT, WRONG))
    assert not allowed(format.write(("h", "{}")))
    assert not allowed(format.write(("g", '{"no": "parameters"}')))
    assert not allowed("Hello")
    assert not allowed("Hello " + format.write(RIGHT))
    assert not allowed("")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("parallel", [True, False])
def test_calls_of_strict_functions_follow_the_schema_where_the_model_chooses(
    name: str, parallel: bool, compiler: GrammarCompiler, tokenizer: Tokenizer
):
    format = FORMATS[name]
    matcher = compiler.compile(
        tool_grammar(format, FUNCTIONS, tokenizer, required=False, parallel=parallel)
    )

    def allowed(text: str) -> bool:
        return matches(matcher, tokenizer, text)

    assert allowed("")
    assert allowed("Hello, how are you?\n")
    assert allowed(format.write(RIGHT))
    assert allowed(format.write(("g", '{"any": ["thing"]}')))
    assert allowed(format.write(RIGHT, OTHER)) == parallel
    if name != "name":  # where only a known name makes a call, this is text
        assert not allowed(format.write(("h", "{}")))
    assert not allowed(format.write(WRONG))
    if format.openings:
        assert allowed("Let me see. " + format.write(RIGHT))
        assert not allowed("Let me see. " + format.write(WRONG))


@pytest.mark.parametrize("name", ["hermes", "list", "tokens"])
def test_an_answer_of_a_given_form_may_be_calls_instead(
    name: str, compiler: GrammarCompiler, tokenizer: Tokenizer
):
    format = FORMATS[name]
    grammar = tool_grammar(
        format, FUNCTIONS, tokenizer, required=False, parallel=True, answer=ANSWER
    )
    matcher = compiler.compile(grammar)
    assert matches(matcher, tokenizer, "[1, 2]")
    assert matches(matcher, tokenizer, format.write(RIGHT, OTHER))
    for text in ("", "Hello", '["a"]', format.write(WRONG), "[1]" + format.write(RIGHT)):
        assert not matches(matcher, tokenizer, text)


def test_json_that_is_a_call_cannot_be_told_from_json_that_is_the_answer(tokenizer: Tokenizer):
    with pytest.raises(InvalidRequestError, match="Ask for one of the two"):
        tool_grammar(
            FORMATS["json"], FUNCTIONS, tokenizer, required=False, parallel=True, answer=ANSWER
        )


@pytest.mark.parametrize("format", [HERMES])
def test_only_strict_functions_have_schemas_refused(
    format: ToolFormat, compiler: GrammarCompiler, tokenizer: Tokenizer
):
    schema = {"properties": {"x": {"type": "array", "uniqueItems": True, "maxItems": 1}}}
    for strict in (False, True):
        function = Function("f", schema, strict)
        grammar = tool_grammar(format, [function], tokenizer, required=True, parallel=True)
        if not strict:
            matcher = compiler.compile(grammar)
            assert matches(matcher, tokenizer, HERMES.write(("f", '{"x": [1]}')))
            assert not matches(matcher, tokenizer, HERMES.write(("f", '{"x": 1}')))
            assert not matches(matcher, tokenizer, HERMES.write(("f", "[]"))), "not an object"
            compiler.compile(arguments_grammar(format, function, tokenizer, required=True))
            continue
        for refused in (grammar, arguments_grammar(format, function, tokenizer, required=False)):
            with pytest.raises(InvalidRequestError, match='"uniqueItems"'):
                compiler.compile(refused)


def test_what_hermes_parses_is_what_the_grammar_forces(
    compiler: GrammarCompiler, tokenizer: Tokenizer
):
    parser = Hermes({})
    text = HERMES.write(RIGHT, ("g", json.dumps({"s": "</tool_call>"})))
    events = parser.push(text) + parser.flush()
    calls = [event.name for event in events if isinstance(event, CallStart)]
    arguments = "".join(event.text for event in events if isinstance(event, ArgumentsDelta))
    assert calls == ["f", "g"]
    assert arguments == '{"x": 7}{"s": "</tool_call>"}'
