from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.text.json_scanner import MAX_DEPTH, JsonScanner, State

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
).filter(lambda value: json.dumps(value).find("Infinity") < 0)


def scan(*chunks: str) -> tuple[State, str, str]:
    """The state at the end, what was read, and what was not."""
    scanner = JsonScanner()
    text = read = ""
    for chunk in chunks:
        end, piece = scanner.scan(text + chunk, 0)
        read += piece
        text = (text + chunk)[end:]
    return scanner.state, read, text


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_json_is_read_as_it_is(value: Any, ascii_only: bool, indent: int | None):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    for chunks in ([text, " x"], [*text, " ", "x"]):
        assert scan(*chunks) == (State.DONE, text, " x")


@given(st.text('{}[],:"\\u0 1-.eEtrue\nN'), st.data())
def test_what_is_read_is_json_and_does_not_depend_on_the_chunks(text: str, data: st.DataObject):
    state, read, rest = scan(text)
    assert scan(*text) == (state, read, rest)
    if state is State.DONE:
        json.loads(read)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('{"a" 1}', '{"a" '),
        ('{"a": 1,}', '{"a": 1,'),
        ("[1 2]", "[1 "),
        ("[01]", "["),
        ("[1.]", "["),
        ("[NaN]", "["),
        ("{1: 2}", "{"),
        ('["\\x"]', '["'),
        ('["\\u12g4"]', '["'),
        ("[}", "["),
        ("'a'", ""),
        ("[" * (MAX_DEPTH + 1), "[" * MAX_DEPTH),
    ],
)
def test_it_stops_before_what_is_wrong(text: str, read: str):
    state, what, rest = scan(text)
    assert (state, what, rest) == (State.WRONG, read, text[len(read) :])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('["a\nb\x01"]', '["a\\nb\\u0001"]'),
        ("[True, False, None]", "[true, false, null]"),
    ],
)
def test_what_models_get_wrong_is_mended(text: str, read: str):
    assert scan(text) == scan(*text) == (State.DONE, read, "")
