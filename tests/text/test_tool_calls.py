from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.text.tool_calls import HermesToolCalls, ToolCall

pieces = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        '{"name": "f", "arguments": {"x": 1}}',
        '{"name": "f"}',
        '{"name": "f", "arguments": {"x": "</tool_call>"}}',
        '{"name": "f", "arguments": {"x": "\\"</tool_call>"}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": 5}',
        '{"name": "',
        "<tool",
        "_call>",
        "<",
        " ",
        "\n",
        '"',
        "{",
        "text",
    ]
)
answers = st.lists(pieces, max_size=12).map("".join)


def parse(chunks: list[str]) -> tuple[str, list[ToolCall]]:
    parser = HermesToolCalls()
    parts = [part for chunk in chunks for part in parser.push(chunk)]
    parts += parser.flush()
    assert parser.num_held == 0
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [part for part in parts if isinstance(part, ToolCall)]


@given(answers, st.data())
def test_the_result_does_not_depend_on_how_the_answer_is_cut(answer: str, data: st.DataObject):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    bounds = zip([0, *cuts], [*cuts, len(answer)], strict=True)
    whole = parse([answer])
    assert parse([answer[start:end] for start, end in bounds]) == whole
    assert parse(list(answer)) == whole


@given(answers)
def test_nothing_is_lost_but_white_space_next_to_calls(answer: str):
    text, calls = parse([answer])
    if not calls:
        assert text == answer
    for call in calls:
        assert call.name == "f"
        assert isinstance(json.loads(call.arguments), dict)
    kept = "".join(text.split())
    removed = len("".join(answer.split())) - len(kept)
    assert removed >= len('<tool_call>{"name":"f"}') * len(calls)


@given(st.text())
def test_an_answer_without_a_tag_is_its_own_text(answer: str):
    assert parse([answer]) == (answer, [])


def test_calls_are_taken_out_of_the_text_in_order():
    answer = (
        "Let me see.\n<tool_call>\n"
        '{"name": "add", "arguments": {"a": 1, "b": [2, "é"]}}\n</tool_call>\n'
        '<tool_call>{"name": "now"}</tool_call>\n'
    )
    assert parse([answer]) == (
        "Let me see.",
        [ToolCall("add", '{"a": 1, "b": [2, "é"]}'), ToolCall("now", "{}")],
    )


def test_text_comes_at_once_and_what_may_become_a_tag_waits():
    parser = HermesToolCalls()
    assert parser.push("Hello") == ["Hello"]
    assert parser.push(" <tool") == []
    assert parser.num_held == 6
    assert parser.push("box>") == [" <toolbox>"]


def test_a_call_comes_as_soon_as_it_is_closed():
    parser = HermesToolCalls()
    assert parser.push('<tool_call>{"name": "f"}</tool_call') == []
    assert parser.push(">") == [ToolCall("f", "{}")]


def test_a_closing_tag_inside_a_string_does_not_close():
    answer = '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>'
    assert parse(list(answer)) == ("", [ToolCall("f", '{"x": "</tool_call>"}')])


def test_a_whole_call_at_the_end_needs_no_closing_tag():
    assert parse(['<tool_call>{"name": "f"}\n']) == ("", [ToolCall("f", "{}")])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not json",
        "[]",
        '{"name": ""}',
        '{"name": "f", "arguments": "{}"}',
        '{"name": "f", "arguments": null}',
        '{"name": "f", "arguments": {"x": }}',
        '{"name": "\\ud800"}',
        '{"arguments": {}}',
        '{"name": "f", "arguments": ' + '{"x":' * 50_000,
    ],
)
def test_a_malformed_call_stays_text(body: str):
    answer = f"a <tool_call>{body}</tool_call> b"
    assert parse([answer]) == (answer, [])


def test_a_good_call_after_a_malformed_one_is_found():
    answer = '<tool_call>oops<tool_call>{"name": "f"}</tool_call>'
    assert parse([answer]) == ("<tool_call>oops", [ToolCall("f", "{}")])
