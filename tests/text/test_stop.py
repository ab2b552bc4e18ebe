from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.text.stop import StopStrings

texts = st.text(alphabet="ab\n", max_size=30)
stops = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4).map(tuple)


def cut(text: str, stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The promise, over the whole text: the first end of a stop string, the longest one there."""
    for end in range(len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            longest = max(ending, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def stream(text: str, cuts: list[int], stop: StopStrings) -> tuple[str, str | None]:
    shown = ""
    borders = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    for start, end in pairwise(borders):
        piece, matched = stop.push(text[start:end])
        shown += piece
        if matched is not None:
            return shown, matched
    return shown + stop.flush(), None


@given(text=texts, stop=stops, include=st.booleans(), cuts=st.lists(st.integers(0, 30)))
def test_every_chunking_cuts_the_whole_text(
    text: str, stop: tuple[str, ...], include: bool, cuts: list[int]
) -> None:
    assert stream(text, cuts, StopStrings(stop, include)) == cut(text, stop, include)


@given(text=texts, stop=stops.filter(bool))
def test_exactly_the_text_that_could_become_a_stop_string_is_held_back(
    text: str, stop: tuple[str, ...]
) -> None:
    stop_strings, pushed, shown = StopStrings(stop), "", ""
    for char in text:
        piece, matched = stop_strings.push(char)
        pushed, shown = pushed + char, shown + piece
        if matched is not None:
            return
        beginnings = [string[:n] for string in stop for n in range(len(string))]
        held = max((part for part in beginnings if pushed.endswith(part)), key=len)
        assert shown + held == pushed


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [(["Hello ST", "OP there"], ["Hello ", ""]), (["Hello ST", "ART"], ["Hello ", "START"])],
)
def test_what_could_become_a_stop_string_waits(pieces: list[str], shown: list[str]) -> None:
    stop = StopStrings(("STOP",))
    assert [stop.push(piece)[0] for piece in pieces] == shown


def test_the_text_ends_with_what_was_held_back() -> None:
    stop = StopStrings(("<|im_end|>",))
    assert stop.push("done <|im_") == ("done ", None)
    assert stop.flush() == "<|im_"
    assert stop.flush() == ""


def test_without_stop_strings_all_text_passes() -> None:
    assert StopStrings(()).push("anything") == ("anything", None)


def test_the_string_that_is_complete_first_wins_whatever_began_earlier() -> None:
    assert StopStrings(("abcd", "bc")).push("xabcd") == ("xa", "bc")
    assert StopStrings(("bc", "abc")).push("xabcd") == ("x", "abc")
