"""An answer that another engine began: what follows completes it, wherever it broke off."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from axion.backends.native.answer import Answer
from axion.errors import CannotContinueError
from axion.openai.delivered import DeliveredCall, DeliveredChoice
from axion.text.answer_format import AnswerFormat, answer_format
from axion.text.events import ArgumentsDelta, CallStart, Event, ReasoningDelta, TextDelta
from axion.text.tokenizer import Tokenizer
from axion.text.tool_calls import WrittenCall
from axion.types import FinishReason, SamplingParams, SequenceOutput

FUNCTIONS = {
    "get": {"properties": {"city": {"type": "string"}, "n": {"type": "integer"}}},
    "set": {"properties": {"x": {"type": "array"}, "s": {"type": "string"}}},
}
GET = '{"city": "Rome, \\"Ost\\" ü", "n": 12}'
SET = '{"x": [1, {"a": "b:c"}], "s": ""}'
# What stands in a chat template of the format, and an answer that its model might write.
ANSWERS = {
    "text": ("", "Yes, {it} is so: 12 < 13.\n\nAnd more. "),
    "llama": (
        '"parameters": ',
        f'{{"name": "get", "parameters": {GET}}}; {{"name": "set", "parameters": {SET}}}',
    ),
    "hermes": (
        "<tool_call>",
        "I look.\n<tool_call>\n"
        f'{{"name": "get", "arguments": {GET}}}\n</tool_call>\n<tool_call>\n'
        f'{{"name": "set", "arguments": {SET}}}\n</tool_call>',
    ),
    "hermes that thinks": (
        "<tool_call> </think>",
        "<think>\nHm, 1 < 2.\nSo.\n</think>\n\nI look.\n<tool_call>\n"
        f'{{"name": "get", "arguments": {GET}}}\n</tool_call>',
    ),
    "mistral": (
        "[TOOL_CALLS]",
        f'Well.[TOOL_CALLS][{{"name": "get", "arguments": {GET}}}, '
        f'{{"name": "set", "arguments": {SET}}}]',
    ),
    "magistral": (
        "[TOOL_CALLS] [ARGS] [THINK]",
        f"[THINK]Hm.[/THINK]So.[TOOL_CALLS]get[ARGS]{GET}[TOOL_CALLS]set[ARGS]{SET}",
    ),
    "granite": (
        "<|tool_call|> Here is my thought process:",
        "Here is my thought process: Hm.\n\nHere is my response: Well. "
        f'<|tool_call|>[{{"name": "get", "arguments": {GET}}}]',
    ),
    "granite 3.3": (
        "<response></response>",
        "<think>Hm. So.</think>\n<response>Yes, it is.</response>",
    ),
    "deepseek": (
        "<｜tool▁calls▁begin｜>",
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>"
        f"{GET}<｜tool▁call▁end｜><｜tool▁call▁begin｜>set<｜tool▁sep｜>{SET}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek v3": (
        "tool['type'] + '<｜tool▁sep｜>' </think>",
        "<think>\nHm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        f"get\n```json\n{GET}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        f"set\n```json\n{SET}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "glm 4": ("<|observation|>", f"get\n{GET}<|assistant|>set\n{SET}"),
    "glm 4.5": (
        "<arg_key>",
        'I look.\n<tool_call>get\n<arg_key>city</arg_key>\n<arg_value>Rome, "Ost" ü</arg_value>\n'
        "<arg_key>n</arg_key>\n<arg_value>12</arg_value>\n</tool_call>\n<tool_call>set\n"
        '<arg_key>x</arg_key>\n<arg_value>[1, {"a": "b:c"}]</arg_value>\n'
        "<arg_key>s</arg_key>\n<arg_value></arg_value>\n</tool_call>",
    ),
    "qwen 3 coder": (
        "<parameter=",
        'I look.\n<tool_call>\n<function=get>\n<parameter=city>\nRome, "Ost" ü\n</parameter>\n'
        "<parameter=n>\n12\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=set>\n"
        '<parameter=x>\n[1, {"a": "b:c"}]\n</parameter>\n'
        "</function>\n</tool_call>",
    ),
    "seed": (
        "<seed:tool_call> <seed:think>",
        "<seed:think>Hm.</seed:think>I look.\n<seed:tool_call>\n<function=get>\n"
        '<parameter=city>Rome, "Ost" ü</parameter>\n<parameter=n>12</parameter>\n</function>\n'
        "</seed:tool_call>",
    ),
    "function gemma": (
        "<start_function_call>",
        'Well.<start_function_call>call:get{city:<escape>Rome, "Ost" ü<escape>,n:12}'
        "<end_function_call><start_function_call>call:set{x:[1,{a:<escape>b:c<escape>}],"
        "s:<escape><escape>}<end_function_call>",
    ),
    "gemma 4": (
        "<|tool_call> <|channel>",
        '<|channel>thought\nHm.\n<channel|>Well.<|tool_call>call:get{city:<|"|>Rome<|"|>,'
        "n:12}<tool_call|>",
    ),
    "gpt-oss": (
        "<|channel|>",
        "<|channel|>analysis<|message|>Hm. So.<|end|><|start|>assistant<|channel|>commentary"
        f" to=functions.get <|constrain|>json<|message|>{GET}",
    ),
    "gpt-oss without a call": (
        "<|channel|>",
        "<|channel|>analysis<|message|>Hm. So.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Yes, it is.",
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Tokenizer(tokenizer)


def add(choice: DeliveredChoice, events: Iterable[Event]) -> DeliveredChoice:
    """What a client has when these events have come too."""
    choice = copy.deepcopy(choice)
    for event in events:
        match event:
            case ReasoningDelta(text):
                choice.reasoning += text
            case TextDelta(text):
                choice.content += text
            case CallStart(i, id, name):
                assert i == len(choice.calls)
                choice.calls.append(DeliveredCall(id, name, offset=len(choice.content)))
            case ArgumentsDelta(i, text):
                choice.calls[i].arguments += text
    return choice


def unit_events(events: Iterable[Event]) -> list[Event]:
    """The same, a character each."""
    units: list[Event] = []
    for event in events:
        match event:
            case ReasoningDelta(text):
                units += map(ReasoningDelta, text)
            case TextDelta(text):
                units += map(TextDelta, text)
            case ArgumentsDelta(i, text):
                units += [ArgumentsDelta(i, char) for char in text]
            case CallStart():
                units.append(event)
    return units


class Model:
    """One that has its answer by heart, but not its white space."""

    def __init__(self, tokenizer: Tokenizer, marker: str, text: str) -> None:
        self.tokenizer = tokenizer
        self.format: AnswerFormat = answer_format(marker)
        self.text = text

    def answer(self, stop: tuple[str, ...] = ()) -> Answer:
        return Answer(
            self.tokenizer,
            [1],
            SamplingParams(stop=stop),
            parser=self.format.parser(FUNCTIONS, opened=False),
        )

    def write(self, choice: DeliveredChoice) -> str:
        calls = [WrittenCall(c.name, c.arguments, c.offset) for c in choice.calls]
        return self.format.write(choice.reasoning, choice.content, calls, opened=False)

    def goes_on(self, answer: Answer, written: str) -> list[list[Event]]:
        """The events of each step of the rest of the answer."""
        text, at = self.text, 0
        for i, char in enumerate(written.rstrip()):
            while at < len(text) and text[at] != char and text[at].isspace():
                at += 1
            if at < len(text) and text[at] == char:
                at += 1
            else:
                assert char.isspace(), f"{written[: i + 1]!r} does not begin {text!r}"
        steps = []
        for token_id in self.tokenizer.encode(text[at:]):
            piece = answer.take(SequenceOutput("", [token_id]))
            steps.append(piece.events)
            if piece.finish_reason is not None:
                return steps
        last = SequenceOutput("", [], finish_reason=FinishReason.STOP)
        return [*steps, answer.take(last).events]


def check(model: Model, before: DeliveredChoice, whole: DeliveredChoice) -> None:
    answer = model.answer()
    written = model.write(before)
    answer.take_over(before, written)
    assert answer.first is not None
    events = list(answer.first.events)
    if answer.first.finish_reason is None:
        events += chain.from_iterable(model.goes_on(answer, written))
    first = add(before, events)
    for i, call in enumerate(before.calls):
        assert first.calls[i].id == call.id
    for choice in (first, whole):
        for call in choice.calls:
            call.id = ""
    assert first == whole, before


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_this_engine_is_completed_from_any_step(name: str, tokenizer: Tokenizer):
    model = Model(tokenizer, *ANSWERS[name])
    steps = model.goes_on(model.answer(), "")
    whole = add(DeliveredChoice(), (event for events in steps for event in events))
    assert whole.content or whole.calls
    assert (len(whole.calls) > 0) == ("get" in model.text)
    before = DeliveredChoice()
    for events in steps:
        check(model, before, copy.deepcopy(whole))
        before = add(before, events)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_of_another_engine_is_completed_from_any_character(
    name: str, tokenizer: Tokenizer
):
    model = Model(tokenizer, *ANSWERS[name])
    steps = model.goes_on(model.answer(), "")
    units = unit_events(event for events in steps for event in events)
    whole = add(DeliveredChoice(), units)
    before = DeliveredChoice()
    for unit in units:
        check(model, before, copy.deepcopy(whole))
        before = add(before, [unit])


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_that_had_begun_is_still_met(tokenizer: Tokenizer, included: bool):
    model = Model(tokenizer, "", "one STOP two")
    for end in range(len("one STOP")):
        before = DeliveredChoice(content="one STOP"[:end])
        params = SamplingParams(stop=("STOP",), include_stop_str_in_output=included)
        answer = Answer(tokenizer, [1], params)
        answer.take_over(before, before.content)
        for events in model.goes_on(answer, before.content):
            before = add(before, events)
        shown = "one STOP" if included else "one " + "STOP"[: max(0, end - 4)]
        assert before.content == shown


@pytest.mark.parametrize(
    "choice",
    [
        DeliveredChoice(reasoning="Hm."),
        DeliveredChoice(calls=[DeliveredCall("a", "unknown", "{}")]),
        DeliveredChoice(content='{"name": "get", "parameters": {}}'),
        DeliveredChoice(content="So: ", calls=[DeliveredCall("a", "get", "{}", offset=4)]),
    ],
)
def test_what_this_model_would_not_have_written_is_refused(
    tokenizer: Tokenizer, choice: DeliveredChoice
):
    model = Model(tokenizer, '"parameters": ', "")
    with pytest.raises(CannotContinueError):
        model.answer().take_over(choice, model.write(choice))


def test_an_answer_at_its_limit_ends_without_the_engine(tokenizer: Tokenizer):
    for max_tokens in (3, 5):
        answer = Answer(tokenizer, [1], SamplingParams(max_tokens=max_tokens, stop=("lo!",)))
        answer.take_over(DeliveredChoice(content="Hel"), "Hello")
        assert answer.first is not None
        assert answer.first.finish_reason is FinishReason.LENGTH
        assert answer.first.text == "lo"
