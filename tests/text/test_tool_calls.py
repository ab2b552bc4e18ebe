from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.text.events import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    Event,
    ReasoningDelta,
    TextDelta,
)
from axion.text.tool_calls import FORMATS, ToolCallParser, tool_call_format
from axion.text.tool_calls.arguments import TaggedArguments, json_types, value_as_json
from axion.text.tool_calls.deepseek import DeepSeek, DeepSeekV3
from axion.text.tool_calls.gemma import FunctionGemma, Gemma3, Gemma4
from axion.text.tool_calls.glm4 import Glm4, Glm45
from axion.text.tool_calls.granite import Granite3
from axion.text.tool_calls.harmony import Harmony
from axion.text.tool_calls.hermes import Hermes
from axion.text.tool_calls.llama3 import JsonObject, Llama3
from axion.text.tool_calls.mistral import Mistral, MistralArgs
from axion.text.tool_calls.qwen3_coder import Qwen3Coder, SeedOss

FUNCTIONS: dict[str, dict[str, Any]] = {
    "find": {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "limit": {"type": "integer"},
            "where": {"type": "object"},
            "deep": {"type": "boolean"},
            "since": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    },
    "now": {},
}


class Parsed(msgspec.Struct):
    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = []


def collect(events: Iterable[Event]) -> Parsed:
    """Events in one piece; they come in the right order."""
    parsed = Parsed()
    ids = set()
    open_call = None
    for event in events:
        match event:
            case TextDelta(text):
                parsed.text += text
            case ReasoningDelta(text):
                parsed.reasoning += text
            case CallStart(index, id, name):
                assert open_call is None
                assert index == len(parsed.calls)
                assert id not in ids
                ids.add(id)
                open_call = index
                parsed.calls.append((name, ""))
            case ArgumentsDelta(index, text):
                assert index == open_call
                name, arguments = parsed.calls[index]
                parsed.calls[index] = (name, arguments + text)
            case CallEnd(index):
                assert index == open_call
                open_call = None
    assert open_call is None
    return parsed


def parse(format: type[ToolCallParser], *chunks: str) -> Parsed:
    parser = format(FUNCTIONS)
    events = [event for chunk in chunks for event in parser.push(chunk)]
    events += parser.flush()
    assert parser.num_held == 0
    return collect(events)


# What models of each family write: format, answer, text that is left, calls.
Example = tuple[type[ToolCallParser], str, str, list[tuple[str, str]]]
EXAMPLES: dict[str, Example] = {
    "hermes": (
        Hermes,
        '<tool_call>\n{"name": "find", "arguments": {"text": "x"}}\n</tool_call>',
        "",
        [("find", '{"text": "x"}')],
    ),
    "hermes parallel, after text": (
        Hermes,
        "Let me see.\n<tool_call>\n"
        '{"name": "find", "arguments": {"limit": 1, "where": {"a": [2, "é"]}}}\n</tool_call>\n'
        '<tool_call>{"name": "now"}</tool_call>\n',
        "Let me see.",
        [("find", '{"limit": 1, "where": {"a": [2, "é"]}}'), ("now", "{}")],
    ),
    "hermes, arguments first": (
        Hermes,
        '<tool_call>{"arguments": {"a": 1}, "name": "find"}</tool_call>',
        "",
        [("find", '{"a": 1}')],
    ),
    "hermes, tags and braces in strings": (
        Hermes,
        '<tool_call>{"name": "find", "arguments": {"text": "}</tool_call>\\"}{"}}</tool_call> ok',
        " ok",
        [("find", '{"text": "}</tool_call>\\"}{"}')],
    ),
    "hermes, a bracket forgotten": (
        Hermes,
        '<tool_call>{"name": "find", "arguments": {"a": 1}\n</tool_call>',
        "",
        [("find", '{"a": 1}')],
    ),
    "hermes, a line feed in a string": (
        Hermes,
        '<tool_call>{"name": "find", "arguments": {"text": "a\nb\tc", "deep": True}}</tool_call>',
        "",
        [("find", '{"text": "a\\nb\\u0009c", "deep": true}')],
    ),
    "hermes, without an end": (
        Hermes,
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool',
        "",
        [("now", "{}")],
    ),
    "hermes, cut in the name": (
        Hermes,
        'Hm. <tool_call>\n{"name": "no',
        'Hm. <tool_call>\n{"name": "no',
        [],
    ),
    "hermes, cut in the arguments": (
        Hermes,
        'Hm. <tool_call>\n{"name": "find", "arguments": {"text": "a\\',
        "Hm.",
        [("find", '{"text": "a\\')],
    ),
    "hermes, broken arguments": (
        Hermes,
        '<tool_call>{"name": "find", "arguments": {"a": }}</tool_call>',
        "}}</tool_call>",
        [("find", '{"a": ')],
    ),
    "qwen3-coder": (
        Qwen3Coder,
        "I look.\n\n<tool_call>\n<function=find>\n<parameter=text>\nif a < b:\n    "
        'print("</b>")\n</parameter>\n<parameter=limit>\n5\n</parameter>\n'
        '<parameter=where>\n{"a": [1]}\n</parameter>\n</function>\n</tool_call>',
        "I look.",
        [
            (
                "find",
                '{"text": "if a < b:\\n    print(\\"</b>\\")", "limit": 5, "where": {"a": [1]}}',
            )
        ],
    ),
    "qwen3-coder, parallel": (
        Qwen3Coder,
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=find>\n"
        "<parameter=deep>\nTrue\n</parameter>\n<parameter=since>\nnull\n</parameter>\n"
        "</function>\n</tool_call>",
        "",
        [("now", "{}"), ("find", '{"deep": true, "since": null}')],
    ),
    "qwen3-coder, no outer tag": (
        Qwen3Coder,
        "<function=find>\n<parameter=text>\né\n\n\n</parameter>\n</function>\n</tool_call>",
        "",
        [("find", '{"text": "é\\n\\n"}')],
    ),
    "qwen3-coder, cut in a string": (
        Qwen3Coder,
        "<tool_call>\n<function=find>\n<parameter=text>\nabc\n</para",
        "",
        [("find", '{"text": "abc\\n</para')],
    ),
    "qwen3-coder, an end forgotten": (
        Qwen3Coder,
        "<tool_call>\n<function=find>\n<parameter=limit>\n5\n</parameter>\n</tool_call>",
        "",
        [("find", '{"limit": 5}')],
    ),
    "qwen3-coder, not a call": (
        Qwen3Coder,
        "<tool_call>\n<function=find>oops</function>\n</tool_call>",
        "<tool_call>\n<function=find>oops</function>\n</tool_call>",
        [],
    ),
    "seed-oss": (
        SeedOss,
        "<seed:tool_call>\n<function=find>\n<parameter=text>a b</parameter>\n"
        "<parameter=limit>5</parameter>\n</function>\n</seed:tool_call>",
        "",
        [("find", '{"text": "a b", "limit": 5}')],
    ),
    "glm-4.6": (
        Glm45,
        "Yes.\n<tool_call>find\n<arg_key>text</arg_key>\n<arg_value>5</arg_value>\n"
        '<arg_key>where</arg_key>\n<arg_value>{"a": "}"}</arg_value>\n</tool_call>\n'
        "<tool_call>now\n</tool_call>",
        "Yes.",
        [("find", '{"text": "5", "where": {"a": "}"}}'), ("now", "{}")],
    ),
    "glm-4.7": (
        Glm45,
        "<tool_call>find<arg_key>limit</arg_key><arg_value>5</arg_value></tool_call>",
        "",
        [("find", '{"limit": 5}')],
    ),
    "glm-4.6, cut": (
        Glm45,
        "<tool_call>find\n<arg_key>limit</arg_key>\n<arg_value>5",
        "",
        [("find", '{"limit": ')],
    ),
    "glm-4": (
        Glm4,
        'find\n{"text": "é}"}',
        "",
        [("find", '{"text": "é}"}')],
    ),
    "glm-4, parallel, after text": (
        Glm4,
        'Let me see.<|assistant|>find\n{"limit": 1}<|assistant|>now\n{}',
        "Let me see.",
        [("find", '{"limit": 1}'), ("now", "{}")],
    ),
    "glm-4, a word that is no function": (Glm4, 'search\n{"a": 1}', 'search\n{"a": 1}', []),
    "llama": (
        Llama3,
        '{"name": "find", "parameters": {"text": "{\\"", "where": {"a": null}}}',
        "",
        [("find", '{"text": "{\\"", "where": {"a": null}}')],
    ),
    "llama, typed": (
        Llama3,
        '{"type": "function", "name": "now", "parameters": {}}\n',
        "",
        [("now", "{}")],
    ),
    "llama, parallel": (
        Llama3,
        '{"name": "find", "parameters": {"limit": 1}}; {"name": "now", "parameters": {}}',
        "",
        [("find", '{"limit": 1}'), ("now", "{}")],
    ),
    "llama, tagged, after text": (
        Llama3,
        'Well <|python_tag|>{"name": "other", "parameters": {"q": "é"}}',
        "Well",
        [("other", '{"q": "é"}')],
    ),
    "llama, an object that is the answer": (
        Llama3,
        '{"name": "Ann", "parameters": {"age": 3}}',
        '{"name": "Ann", "parameters": {"age": 3}}',
        [],
    ),
    "llama, code": (Llama3, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    "llama, cut": (Llama3, '{"name": "find", "para', '{"name": "find", "para', []),
    "mistral": (
        Mistral,
        '[TOOL_CALLS] [{"name": "find", "arguments": {"text": "]é"}, "id": "abcdefghi"}, '
        '{"name": "now", "arguments": {}}]',
        "",
        [("find", '{"text": "]é"}'), ("now", "{}")],
    ),
    "mistral, after text, cut": (
        Mistral,
        'Ok.[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "find", "arguments": {"t',
        "Ok.",
        [("now", "{}"), ("find", '{"t')],
    ),
    "mistral, newer": (
        MistralArgs,
        'Ok.[TOOL_CALLS]find[ARGS]{"where": {"a": "\\"}"}}[TOOL_CALLS]now[ARGS]{}',
        "Ok.",
        [("find", '{"where": {"a": "\\"}"}}'), ("now", "{}")],
    ),
    "mistral, no call": (Mistral, "[TOOL_CALLS] is a token", "[TOOL_CALLS] is a token", []),
    "granite": (
        Granite3,
        'Sure. <|tool_call|>[{"name": "find", "arguments": {"limit": 1}}, {"name": "now"}]',
        "Sure.",
        [("find", '{"limit": 1}'), ("now", "{}")],
    ),
    "granite, none": (Granite3, "<|tool_call|>[]", "<|tool_call|>[]", []),
    "phi-4-mini": (
        Granite3,
        '<|tool_call|>[{"name": "find", "arguments": {"text": "é"}}]<|/tool_call|>',
        "",
        [("find", '{"text": "é"}')],
    ),
    "deepseek-v3.1": (
        DeepSeek,
        "Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>"
        '{"text": "}"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Ok.",
        [("find", '{"text": "}"}'), ("now", "{}")],
    ),
    "deepseek-v3": (
        DeepSeekV3,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>find\n```json\n"
        '{"where": {"a": "```"}}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function'
        "<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [("find", '{"where": {"a": "```"}}'), ("now", "{}")],
    ),
    "deepseek, cut": (
        DeepSeek,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>find<｜tool▁sep｜>{"text": "a',
        "",
        [("find", '{"text": "a')],
    ),
    "functiongemma": (
        FunctionGemma,
        '<start_function_call>call:find{text:<escape>a, "b"}<escape>,limit:-1.5,deep:true,'
        "where:{k:[1,<escape>é<escape>,{}],l:[]}}<end_function_call>"
        "<start_function_call>call:now{}<end_function_call>",
        "",
        [
            (
                "find",
                '{"text": "a, \\"b\\"}", "limit": -1.5, "deep": true, '
                '"where": {"k": [1, "é", {}], "l": []}}',
            ),
            ("now", "{}"),
        ],
    ),
    "gemma 4": (
        Gemma4,
        'Hm.<|tool_call>call:find{text:<|"|>x<|"|>,where:{<|"|>a:b<|"|>:1}}<tool_call|>',
        "Hm.",
        [("find", '{"text": "x", "where": {"a:b": 1}}')],
    ),
    "gemma 3, python": (
        Gemma3,
        "Sure:\n```tool_code\nprint(find(text='it\\'s \"é\"', where={'a': [1, (None,)]}))\n"
        "now()\n```",
        "Sure:",
        [("find", '{"text": "it\'s \\"é\\"", "where": {"a": [1, [null]]}}'), ("now", "{}")],
    ),
    "gemma 3, json": (
        Gemma3,
        '```json\n{"name": "find", "parameters": {"text": "```"}}\n```',
        "",
        [("find", '{"text": "```"}')],
    ),
    "gemma 3, other code": (
        Gemma3,
        "```tool_code\nnow()\nimport os\n```",
        "```tool_code\nnow()\nimport os\n```",
        [],
    ),
    "a list of objects": (
        JsonObject,
        '[{"name": "find", "arguments": {"limit": 1}}, {"name": "now"}]',
        "",
        [("find", '{"limit": 1}'), ("now", "{}")],
    ),
    "harmony": (
        Harmony,
        "<|channel|>analysis<|message|>I need it.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.find <|constrain|>json<|message|>{"text": "<|x|>"}<|call|>',
        "",
        [("find", '{"text": "<|x|>"}')],
    ),
    "harmony, the recipient first": (
        Harmony,
        ' to=functions.now<|channel|>commentary json<|message|>{}',
        "",
        [("now", "{}")],
    ),
    "harmony, text": (
        Harmony,
        "<|channel|>commentary<|message|>Wait. <|end|><|start|>assistant<|channel|>final"
        "<|message|>An answer to assistant<|return|>",
        "Wait. An answer to assistant",
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_models_write_is_read(example: str):
    format, answer, text, calls = EXAMPLES[example]
    parsed = parse(format, answer)
    assert (parsed.text, parsed.calls) == (text, calls)
    assert parse(format, *answer) == parsed


@given(st.sampled_from([*EXAMPLES]), st.data())
def test_every_chunking_of_an_answer_gives_the_same(example: str, data: st.DataObject):
    format, answer, text, calls = EXAMPLES[example]
    parsed = parse(format, *cut(answer, data))
    assert (parsed.text, parsed.calls) == (text, calls)


def cut(answer: str, data: st.DataObject) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    return [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]


PIECES = [
    '{"name": "find", "arguments": {"limit": 1}}',
    '{"name": "find", "parameters": {"text": "',
    '{"name": "now"}',
    '{"name": 5}',
    '"arguments": {"x": ',
    "find",
    "now\n{}",
    "call:find{",
    "limit:1",
    "<function=find>",
    "<parameter=limit>",
    "</parameter>",
    "</function>",
    "</tool_call>",
    "```json\n",
    "```",
    "print(find(limit=1))",
    "<|message|>",
    " to=functions.find",
    "[ARGS]",
    "[",
    "]",
    "{",
    "}",
    '"',
    "\\",
    ",",
    ";",
    " ",
    "\n",
    "é",
    "Tru",
    "1",
]


@given(st.sampled_from([format for _, format in FORMATS]), st.data())
def test_any_text_is_read_the_same_in_any_chunking_and_nothing_is_told_twice(
    format: type[ToolCallParser], data: st.DataObject
):
    literals = [literal[:n] for literal in {*format.openings, *format.markers} for n in (3, 99)]
    pieces = st.sampled_from([*PIECES, *literals, *literals])
    answer = "".join(data.draw(st.lists(pieces, max_size=12)))
    parsed = parse(format, answer)
    assert parse(format, *answer) == parsed
    assert parse(format, *cut(answer, data)) == parsed
    rest = iter(answer)
    assert all(char in rest for char in parsed.text)  # in this order
    if not parsed.calls and format is not Harmony:
        assert parsed.text == answer


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=8),
    lambda values: (
        st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3)
    ),
    max_leaves=6,
)
calls = st.lists(
    st.tuples(
        st.sampled_from([*FUNCTIONS]),
        st.dictionaries(st.text("abc_", min_size=1, max_size=5), json_values, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


def write(format: type[ToolCallParser], calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Calls as the class says that templates write them."""

    def arguments(values: dict[str, Any]) -> str:
        if format.json_arguments:
            return json.dumps(values, ensure_ascii=False)
        assert issubclass(format, TaggedArguments)
        return "".join(
            format.argument_begin
            + key
            + format.value_begin
            + (value if isinstance(value, str) else json.dumps(value))
            + format.argument_end
            for key, value in values.items()
        )

    written = (
        format.call_begin + name + format.arguments_begin + arguments(values) + format.call_end
        for name, values in calls
    )
    return format.calls_begin + format.call_separator.join(written) + format.calls_end


@given(
    st.sampled_from([format for _, format in FORMATS if format.json_arguments]), calls, st.data()
)
def test_calls_come_back_as_templates_write_them(
    format: type[ToolCallParser], calls: list[tuple[str, dict[str, Any]]], data: st.DataObject
):
    answer = write(format, calls)
    written = [(name, json.dumps(values, ensure_ascii=False)) for name, values in calls]
    assert parse(format, *cut(answer, data)) == Parsed(calls=written)


typed_values = {
    "text": st.text(st.characters(exclude_characters="<", codec="utf-8"), max_size=8).filter(
        lambda text: not text.startswith("\n") and not text.endswith("\n")
    ),
    "limit": st.integers(),
    "where": st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    "deep": st.booleans(),
    "since": st.none() | st.just("yesterday"),
}


@given(
    st.sampled_from([Qwen3Coder, SeedOss, Glm45]),
    st.lists(st.fixed_dictionaries({}, optional=typed_values), min_size=1, max_size=3),
    st.data(),
)
def test_tagged_arguments_come_back_with_their_types(
    format: type[ToolCallParser], arguments: list[dict[str, Any]], data: st.DataObject
):
    parsed = parse(format, *cut(write(format, [("find", values) for values in arguments]), data))
    assert [json.loads(text) for _, text in parsed.calls] == arguments
    assert parsed.text == ""


@given(st.text(), st.sampled_from([format for _, format in FORMATS]))
def test_an_answer_without_a_call_is_its_own_text(answer: str, format: type[ToolCallParser]):
    assert parse(format, answer) == Parsed(text=answer)


@pytest.mark.parametrize(
    ("format", "answer", "deltas"),
    [
        (Hermes, '<tool_call>{"name": "find", "arguments": {"text": "abc', 8),
        (Qwen3Coder, "<function=find><parameter=text>\nabc", 4),
        (Gemma4, '<|tool_call>call:find{text:<|"|>abc', 4),
        (Harmony, '<|channel|>commentary to=functions.find<|message|>{"text": "abc', 8),
    ],
)
def test_arguments_come_as_they_are_written(format: type[ToolCallParser], answer: str, deltas: int):
    parser = format(FUNCTIONS)
    events = [event for char in answer for event in parser.push(char)]
    assert sum(isinstance(event, ArgumentsDelta) for event in events) >= deltas
    assert collect([*events, CallEnd(0)]).calls == [("find", '{"text": "abc')]


def test_text_comes_at_once_and_what_may_become_a_call_waits():
    parser = Hermes(FUNCTIONS)
    assert parser.push("Hello") == [TextDelta("Hello")]
    assert parser.push(" <tool") == []
    assert parser.num_held == 6
    assert parser.push("box>") == [TextDelta(" <toolbox>")]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not json",
        "[]",
        '{"name": ""}',
        '{"name": "find", "arguments": "{}"}',
        '{"name": "find", "arguments": [1]}',
        '{"name": "\\ud800"}',
        '{"name": {}}',
        '{"arguments": {}}',
        '{"arguments": ' + '{"x":' * 500,
    ],
)
def test_a_call_that_is_malformed_before_its_arguments_stays_text(body: str):
    answer = f"a <tool_call>{body}</tool_call> b"
    assert parse(Hermes, answer) == Parsed(text=answer)


def test_a_good_call_after_a_malformed_one_is_found():
    answer = '<tool_call>oops <tool_call>{"name": "now"}'
    assert parse(Hermes, answer) == Parsed(text="<tool_call>oops", calls=[("now", "{}")])


def test_mistral_ids_are_what_its_templates_take():
    parser = Mistral(FUNCTIONS)
    events = parser.push("[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[CALL_ID]ABCdef123[ARGS]{}")
    own, given = (event.id for event in events if isinstance(event, CallStart))
    assert len(own) == 9
    assert own.isalnum()
    assert given == "ABCdef123"


def test_harmony_tells_reasoning_from_the_answer():
    answer = (
        "<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant<|channel|>final<|message|>A"
    )
    for chunks in ([answer], [*answer]):
        assert parse(Harmony, *chunks) == Parsed(text="A", reasoning="Hm. ")
    parser = Harmony(FUNCTIONS)
    parser.push("<|channel|>analysis<|message|>Hm")
    assert parser.reasoning
    parser.push("<|end|>")
    assert not parser.reasoning


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"number", "null"}),
        ({"enum": ["a", "b"]}, {"string"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "string"}, {"enum": [None]}]}, {"string", "null"}),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/x"}]}, set()),
        ({"$ref": "#/$defs/x"}, set()),
        ({}, set()),
        (None, set()),
        (True, set()),
    ],
)
def test_a_schema_says_which_types_a_value_has(schema: Any, types: set[str]):
    assert json_types(schema) == types


@pytest.mark.parametrize(
    ("text", "types", "expected"),
    [
        ("5", {"number"}, "5"),
        ("5", {"string", "null"}, '"5"'),
        ("5", set(), "5"),
        (" None ", {"null"}, "null"),
        ("[1, 2", {"array"}, '"[1, 2"'),
        ("yes", {"boolean"}, '"yes"'),
        ("1 2", set(), '"1 2"'),
        ('"a"', set(), '"\\"a\\""'),
        ("", set(), '""'),
        ("9" * 5000, {"number"}, "9" * 5000),
    ],
)
def test_a_value_without_quotes_becomes_what_its_schema_allows(
    text: str, types: set[str], expected: str
):
    assert value_as_json(text, frozenset(types)) == expected


# Lines of the models' own templates.
@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("within <tool_call></tool_call> XML tags:\n<tool_call>\n", Hermes),
        ("<tool_call>\n<function=example_name>\n<parameter=example_parameter_1>", Qwen3Coder),
        ("'<seed:tool_call>' <function=example_function_name>\n<parameter=x>", SeedOss),
        ('{"name": function name, "parameters": dictionary of argument names}', Llama3),
        ('{{- \'"parameters": \' }}', Llama3),
        ('{{- "[TOOL_CALLS] [" }}', Mistral),
        ("{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", MistralArgs),
        ("<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", Glm45),
        ("请使用 Json 格式表示调用的参数。{{'<|observation|>'}}", Glm4),
        ("respond with <|tool_call|> followed by a JSON list of tools used", Granite3),
        ("<start_function_declaration> <start_function_call>call:", FunctionGemma),
        ("{{- '<|tool_call>call:' + function['name'] + '{' -}}", Gemma4),
        ("```tool_code", Gemma3),
        ("'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>'", DeepSeek),
        (
            "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + "
            "tool['function']['name'] + '\\n' + '```json' + '\\n'",
            DeepSeekV3,
        ),
        ("<|start|>assistant<|channel|>final<|message|>", Harmony),
        ("Answer in JSON.", JsonObject),
    ],
)  # fmt: skip
def test_the_format_is_found_in_the_template(template: str, format: type[ToolCallParser]):
    assert tool_call_format(template) is format


def test_glm4_gets_calls_and_results_in_its_own_roles():
    call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c"},
    ]
    assert Glm4.template_messages(messages) == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "Hm."},
        {"role": "assistant", "metadata": "now", "content": '{"a": 1}'},
        {"role": "observation", "content": "5", "tool_call_id": "c"},
    ]
