"""Compiling grammars: what they match, what is refused and why, and what stays bounded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tokenizers
from llguidance import LLMatcher
from tokenizers import AddedToken, decoders, models

from axion.errors import InvalidRequestError
from axion.text.grammar import GrammarCompiler
from axion.text.tokenizer import Tokenizer, load_tokenizer
from axion.types import Grammar

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return load_tokenizer(tiny_model)


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, (0,))


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def matches(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar, text: str) -> bool:
    matcher = compiler.compile(grammar)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    if matcher.validate_tokens(token_ids) < len(token_ids):
        return False
    return matcher.consume_tokens(token_ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (schema(PERSON), ['{"name": "Ü 👋🏽", "age": 3}', '{"name":"a"}'], ["{}", '{"age": 3}']),
        (schema({"type": "object"}), ["{}", '{"a": [null, true]}'], ["[]", "x", '{"a"}']),
        (schema({"enum": ["a", 1, None]}), ['"a"', "1", "null"], ["2", '"b"']),
        (schema({"x-guidance": {"lenient": True}, "type": "integer"}), ["5"], ["x"]),
        (
            schema({"properties": {"exclusiveMinimum": {"const": {"exclusiveMinimum": 0}}}}),
            ['{"exclusiveMinimum": {"exclusiveMinimum": 0}}'],
            ['{"exclusiveMinimum": 5}'],
        ),
        (Grammar("regex", r"[a-c]+\d{2}"), ["abc12"], ["12", "abc123", "abc1"]),
        (Grammar("regex", r"^(yes|no)$"), ["yes"], ["yes!", "maybe"]),
        (Grammar("choice", json.dumps(["red", 'a"b\\\n', "naïve"])), ["red", 'a"b\\\n'], ["re"]),
        (Grammar("grammar", 'start: "a" b\nb: /[0-9]/+'), ["a1", "a12"], ["a", "1"]),
        (Grammar("grammar", '?start: expr\nexpr: "1" ("+" "1")*'), ["1+1"], ["1+"]),
        (Grammar("grammar", 'root ::= "a" b # x\nb ::= [0-9]+'), ["a1", "a12"], ["a", "1"]),
        (Grammar("grammar", f"start: %json {json.dumps(PERSON)}"), ['{"name": ""}'], ["{}"]),
    ],
)
def test_a_grammar_matches_what_it_says(
    grammar: Grammar,
    right: list[str],
    wrong: list[str],
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
):
    for text in right:
        assert matches(compiler, tokenizer, grammar, text), text
    for text in wrong:
        assert not matches(compiler, tokenizer, grammar, text), text


def test_white_space_between_json_values_ends(compiler: GrammarCompiler, tokenizer: Tokenizer):
    for space in (" ", "\n", "\n    ", "\n\t"):
        text = f'{{{space}"name":{space}"a"{space}}}'
        assert matches(compiler, tokenizer, schema(PERSON), text), repr(space)
    for space in ("  ", "\n\n", "\n" + " " * 41, "\t"):
        text = f'{{{space}"name": "a"}}'
        assert not matches(compiler, tokenizer, schema(PERSON), text), repr(space)


@pytest.mark.parametrize(
    ("bounds", "right", "wrong"),
    [
        ({"exclusiveMinimum": 2, "maximum": 2.25}, ["2.01", "2.25"], ["2", "2.0", "2.26"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, ["0.1", "0.49"], ["0", "-0", "0.5"]),
        ({"minimum": -1.5, "exclusiveMaximum": -1}, ["-1.5", "-1.2"], ["-1", "-1.0", "-1.6"]),
        ({"minimum": 2.1, "exclusiveMinimum": 2, "maximum": 2.9}, ["2.1"], ["2", "2.05", "3"]),
        ({"exclusiveMinimum": 0, "maximum": 1}, ["0.000001", "1"], ["0", "1.1"]),
    ],
)
def test_exclusive_bounds_exclude(
    bounds: dict[str, float],
    right: list[str],
    wrong: list[str],
    compiler: GrammarCompiler,
    tokenizer: Tokenizer,
):
    grammar = schema({"type": "array", "items": {"type": "number", **bounds}})
    for number in right:
        assert matches(compiler, tokenizer, grammar, f"[{number}]"), number
    for number in wrong:
        assert not matches(compiler, tokenizer, grammar, f"[{number}]"), number


def allowed(matcher: LLMatcher, vocab_size: int = 320) -> list[int]:
    """The tokens that may come next."""
    words = np.zeros((vocab_size + 31) // 32, np.uint32)
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    return [int(i) for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))]


def nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


DOUBLING = "\n".join(f"X{i}: X{i + 1} X{i + 1}" for i in range(40)) + '\nX40: "a"\nstart: X0'


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        # What the library cannot enforce.
        (schema({"not": {"type": "string"}}), '"not"'),
        (schema({"type": "array", "uniqueItems": True}), '"uniqueItems"'),
        (schema({"if": {}, "then": {}}), '"if"'),
        (schema({"type": "string", "format": "phone"}), '"phone"'),
        (schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "pattern"),
        (schema({"type": "string", "pattern": r"(a)\1"}), "backreferences"),
        (schema({"$ref": "http://127.0.0.1:9/schema"}), "not fetched"),
        (schema({"$ref": "file:///etc/passwd"}), "not fetched"),
        # What no value satisfies.
        (schema({"$ref": "#"}), "no text matches"),
        (schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "no text matches"),
        (schema({"type": "integer", "minimum": 5, "maximum": 2}), "minimum"),
        (schema({"allOf": [{"type": "integer"}, {"type": "string"}]}), "incompatible types"),
        (schema({"enum": []}), "no value"),
        (Grammar("regex", "[^\\s\\S]"), ""),
        (Grammar("regex", "()"), "no text matches"),
        # What is wrong.
        (schema({"type": "strin"}), '"strin"'),
        (schema({"$ref": "#/$defs/none"}), "/$defs/none"),
        (schema({"properties": []}), "properties"),
        (schema([]), "object"),
        (Grammar("json_schema", "{"), ""),
        (Grammar("regex", "("), "unclosed group"),
        (Grammar("grammar", "start: x"), '"x"'),
        (Grammar("grammar", "root ::= ("), "Expected"),
        (Grammar("grammar", 'root ::= "\\'), ""),
        (Grammar("grammar", "start: <nosuch>"), "nosuch"),
        (Grammar("grammar", "start: <[99999]>"), "99999"),
        (Grammar("grammar", '%import "/etc/passwd"\nstart: "a"'), ""),
        (Grammar("grammar", "X: Y\nY: X\nstart: X"), "circular"),
        # What is too much.
        (Grammar("json_schema", nested(5000)), "nested too deeply"),
        (Grammar("json_schema", nested(200)), "nested too deeply"),
        (Grammar("grammar", "start: " + "(" * 50_000 + '"a"' + ")" * 50_000), "nested too deeply"),
        (Grammar("grammar", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000), "nested too deeply"),
        (Grammar("regex", "(" * 20_000 + "a" + ")" * 20_000), ""),
        (Grammar("grammar", DOUBLING), "too complex"),
        (schema({"type": "integer", "multipleOf": 999_999_937}), "too complex"),
        (
            schema(
                {
                    "allOf": [
                        {"anyOf": [{"properties": {f"{i}{j}": {}}} for j in "ab"]}
                        for i in range(30)
                    ]
                }
            ),
            "too complex",
        ),
        (Grammar("grammar", "\n" * 100_000 + "root"), ""),
    ],
)
def test_what_cannot_be_used_is_refused_in_words_and_in_time(
    grammar: Grammar, said: str, compiler: GrammarCompiler
):
    compiler.compile(schema({}))
    began = time.thread_time()
    with pytest.raises(InvalidRequestError) as caught:
        compiler.compile(grammar)
    assert time.thread_time() - began < 2
    assert said in caught.value.message
    assert len(caught.value.message) < 500
    assert caught.value.message.endswith(".")


@pytest.mark.parametrize(
    "grammar",
    [
        schema({"enum": [f"value {i}" for i in range(5000)]}),
        schema({"type": "object", "properties": {f"p{i}": {} for i in range(1000)}}),
        schema({"type": "array", "minItems": 10**9, "items": {"type": "integer"}}),
        schema({"type": "string", "maxLength": 10**8}),
        schema({"type": "string", "pattern": "(a{1000}){1000}"}),
        schema({"type": "string", "pattern": "^(.*a){30}.{200}$"}),
        Grammar("regex", "(a|b)*a(a|b){1000}"),
        Grammar("regex", "a{1000000}"),
        Grammar("regex", "(a+)+b"),
        Grammar("grammar", "start: x{1000}\nx: y{1000}\ny: z{1000}\nz: /[a-z]/"),
        Grammar("grammar", 'start: start start | "a" | '),
        Grammar("grammar", "root ::= " + '"a" ' * 20_000),
    ],
)
def test_what_is_large_is_bounded_in_time(grammar: Grammar, compiler: GrammarCompiler):
    compiler.compile(schema({}))
    began = time.thread_time()
    matcher = compiler.compile(grammar)
    for _ in range(50):
        token_ids = allowed(matcher)
        if matcher.is_error() or matcher.is_stopped():
            break
        matcher.consume_token(token_ids[-1])
    assert time.thread_time() - began < 3


def test_thousands_of_schemas_take_no_more_memory_than_a_few(compiler: GrammarCompiler):
    process = psutil.Process()

    def compile_many(first: int) -> int:
        for i in range(first, first + 2000):
            compiler.compile(schema({"type": "object", "properties": {f"p{i}": {"const": i}}}))
        return process.memory_info().rss

    before = compile_many(0)
    assert compile_many(2000) - before < 2**25
    assert len(compiler._compiled) <= 32


def test_large_grammars_are_kept_in_smaller_numbers(compiler: GrammarCompiler):
    for i in range(12):
        compiler.compile(schema({"enum": [f"{i}" * 100_000]}))
    assert len(compiler._compiled) <= 5
    assert compiler._num_chars == sum(size for _, size in compiler._compiled.values()) <= 2**19


def test_the_same_grammar_is_compiled_once_and_matched_apart(
    compiler: GrammarCompiler, tokenizer: Tokenizer
):
    one, two = (compiler.compile(Grammar("regex", "ab")) for _ in range(2))
    assert one.consume_tokens(tokenizer.encode("a"))
    assert len(compiler._compiled) == 1
    assert two.consume_tokens(tokenizer.encode("a"))
    assert not one.is_accepting()


def test_a_vocabulary_may_be_padded_and_lack_an_end(tokenizer: Tokenizer):
    for vocab_size in (tokenizer.vocab_size - 5, tokenizer.vocab_size + 100, 320, 321):
        compiler = GrammarCompiler(lambda: tokenizer, vocab_size, ())
        assert matches(compiler, tokenizer, Grammar("regex", "a+b"), "aab")


def test_text_of_a_special_token_is_written_with_ordinary_ones(
    compiler: GrammarCompiler, tokenizer: Tokenizer
):
    matcher = compiler.compile(Grammar("choice", '["<|user|>!"]'))
    special = tokenizer.token_to_id("<|user|>")
    assert special not in allowed(matcher)
    spelled = [tokenizer.token_to_id(char) for char in "<|user|>!"]
    assert matcher.consume_tokens(spelled)
    assert matcher.is_accepting()


def test_a_tokenizer_that_begins_texts_with_a_space_writes_none():
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "a"]
    model = models.BPE(
        {token: i for i, token in enumerate(vocabulary)},
        [("▁", "a")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    library = tokenizers.Tokenizer(model)
    library.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    library.add_special_tokens([AddedToken("</s>", special=True)])
    compiler = GrammarCompiler(lambda: Tokenizer(library), len(vocabulary), (1,))
    matcher = compiler.compile(Grammar("choice", '["ab{"]'))
    written = b""
    tokenizer = Tokenizer(library)
    while not matcher.is_stopped():
        token_id = allowed(matcher, len(vocabulary))[-1]
        written += tokenizer.id_to_token_bytes(token_id)
        assert matcher.consume_token(token_id)
    assert written == b"ab{"
