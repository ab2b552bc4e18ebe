from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.text.answer_format import answer_format
from axion.text.events import CallStart, Event, ReasoningDelta, TextDelta
from axion.text.reasoning import ReasoningParser, reasoning_tags
from axion.text.stream_parser import AnswerParser
from axion.text.tool_calls.harmony import Harmony

THINK = reasoning_tags("</think>")
GRANITE = reasoning_tags("Here is my thought process:")
WRAPPED = reasoning_tags("between <response></response> for each")
assert THINK
assert GRANITE
assert WRAPPED


def read(parser: AnswerParser, *chunks: str) -> tuple[str, str]:
    """Reasoning and text of an answer."""
    events: list[Event] = [event for chunk in chunks for event in parser.push(chunk)]
    events += parser.flush()
    assert parser.num_held == 0
    return (
        "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
        "".join(event.text for event in events if isinstance(event, TextDelta)),
    )


@pytest.mark.parametrize(
    ("tags", "opened", "answer", "reasoning", "text"),
    [
        (THINK, False, "<think>\nHm. So.\n</think>\n\nYes.\n", "Hm. So.", "Yes.\n"),
        (THINK, False, "\n<think></think>\nYes.", "", "Yes."),
        (THINK, True, "\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        (THINK, True, "Hm. <think> Hm", "Hm. <think> Hm", ""),
        (THINK, False, "<think>Hm. </thi", "Hm. </thi", ""),
        (THINK, False, " Yes, <think> is a tag.", "", " Yes, <think> is a tag."),
        (THINK, False, "<thinking>", "", "<thinking>"),
        (THINK, False, "\n <thi", "", "\n <thi"),
        (THINK, True, "Hm.</think> a </think> b", "Hm.", "a </think> b"),
        (
            GRANITE,
            False,
            "Here is my thought process: Hm.\n\nHere is my response: Yes.",
            "Hm.",
            "Yes.",
        ),
        (WRAPPED, False, "<think>Hm.</think>\n<response>Yes.</response> ", "Hm.", "Yes. "),
        (WRAPPED, False, "<think>Hm.</think>Yes.</response>", "Hm.", "Yes.</response>"),
    ],
)
def test_reasoning_is_told_from_the_answer(
    tags: object, opened: bool, answer: str, reasoning: str, text: str
):
    for chunks in ([answer], [*answer]):
        assert read(ReasoningParser(tags, opened=opened), *chunks) == (reasoning, text)


@given(
    st.sampled_from([THINK, GRANITE, WRAPPED]),
    st.booleans(),
    st.lists(
        st.sampled_from(["<think>", "</think>", "<thi", "nk>", " ", "\n", "a", "Here is my "])
    ),
    st.data(),
)
def test_every_chunking_gives_the_same(
    tags: object, opened: bool, pieces: list[str], data: st.DataObject
):
    answer = "".join(pieces)
    whole = read(ReasoningParser(tags, opened=opened), answer)
    assert read(ReasoningParser(tags, opened=opened), *answer) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=5)))
    chunks = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(ReasoningParser(tags, opened=opened), *chunks) == whole


def test_it_is_known_whether_the_model_reasons():
    parser = ReasoningParser(THINK, opened=False)
    states = []
    for chunk in ("<think>", "Hm", "</th", "ink>", "Yes"):
        parser.push(chunk)
        states.append(parser.reasoning)
    assert states == [True, True, True, False, False]


def test_a_prompt_opens_the_reasoning_only_at_its_end():
    assert THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not THINK.opened_by("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_that_is_continued_may_be_inside_the_reasoning():
    assert THINK.left_open_in("<think>I was")
    assert not THINK.left_open_in("<think>I was</think>So")
    assert not THINK.left_open_in("So")


def test_calls_come_after_the_reasoning_and_not_in_it():
    call = '<tool_call>{"name": "f"}</tool_call>'
    template = "<think></think> <tool_call>"
    for chunks in ([f"<think>{call}</think>\n\n{call}"], [*f"<think>{call}</think>\n\n{call}"]):
        parser = answer_format(template).parser({"f": {}}, opened=False)
        assert parser is not None
        events = [event for chunk in chunks for event in parser.push(chunk)]
        events += parser.flush()
        assert sum(isinstance(event, CallStart) for event in events) == 1
        reasoning = [event.text for event in events if isinstance(event, ReasoningDelta)]
        assert "".join(reasoning) == call
        assert not any(isinstance(event, TextDelta) for event in events)


def test_an_answer_is_only_parsed_where_there_is_something_to_find():
    assert answer_format("plain").parser(None, opened=False) is None
    assert isinstance(answer_format("<|channel|>").parser(None, opened=False), Harmony)
    assert answer_format("<|channel|>").reasons
    assert not answer_format("plain").reasons
    mistral = answer_format("'[THINK]' '[TOOL_CALLS]'")
    assert mistral.markers(None) == ("[THINK]", "[/THINK]")
    assert {"[TOOL_CALLS]", "[THINK]"} < {*mistral.markers({})}
