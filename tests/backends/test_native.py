from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import openai.types
import openai.types.chat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from axion.backends import native
from axion.backends.base import ModelConfig
from axion.backends.native import NativeBackend
from axion.engine.echo import EchoEngine, NullEngine
from axion.errors import (
    AxionError,
    ContextLengthExceededError,
    EngineUnavailableError,
    InternalError,
    InvalidRequestError,
    ModelLoadError,
)
from axion.openai.chat import ChatCompletionRequest, collect_chat
from axion.openai.common import GenerationRequest, parse_request
from axion.openai.completions import CompletionChunk, CompletionRequest, collect_completion
from axion.openai.structured import StructuredRequest
from axion.text.chat_template import ChatTemplate, load_chat_template
from axion.text.tokenizer import Tokenizer as TextTokenizer
from axion.types import (
    BackendState,
    EngineConfig,
    FinishReason,
    SamplingParams,
    SequenceOutput,
    TokenLogprobs,
)

# An echo engine answers with the rendered prompt: here, the contents of the messages.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.role != 'user' %}[{{ m.role }}]{% endif %}"
    "{{ m.content }}{% endfor %}"
)
TOOL_TEMPLATE = (
    "{% if tools %}{# They are called by <tool_call>. #}{% endif %}"
    "{% for m in messages %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.arguments.a }}{% endfor %}"
    "{% endfor %}{% if shout %}!{% endif %}"
)
REASONING_TEMPLATE = (
    "{# <think></think> <tool_call> #}{% for m in messages %}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% endfor %}{% if tools %}{% endif %}"
    "{% if add_generation_prompt and enable_thinking %}<think>{% endif %}"
)
ALWAYS_REASONS_TEMPLATE = "{# <think></think> #}{{ messages[0].content }}"
EFFORT_TEMPLATE = "{{ messages[0].content }} {{ reasoning_effort }}"
JSON_TEMPLATE = "{% if tools %}{% endif %}{{ messages[0].content }}"
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
EOS = 0


def save_model(
    folder: Path, chat_template: str | None, special_tokens: tuple[str, ...] = (), **generation: Any
) -> Path:
    """A model folder without weights: byte tokens, and a few longer ones."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|end|>", *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox, the quick brown fox"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (folder / "config.json").write_text("{}")
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "model.safetensors").touch()
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "plain": save_model(root / "plain", PLAIN_TEMPLATE),
        "tools": save_model(root / "tools", TOOL_TEMPLATE),
        "special": save_model(root / "special", TOOL_TEMPLATE, ("<tool_call>", "</tool_call>")),
        "mistral": save_model(
            root / "mistral",
            "{# [THINK] [TOOL_CALLS] [ARGS] #}" + JSON_TEMPLATE,
            ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "<|other|>"),
        ),
        "reasoning": save_model(root / "reasoning", REASONING_TEMPLATE),
        "always": save_model(root / "always", ALWAYS_REASONS_TEMPLATE),
        "effort": save_model(root / "effort", EFFORT_TEMPLATE),
        "json": save_model(root / "json", JSON_TEMPLATE),
        "dated": save_model(root / "dated", "{{ strftime_now('%Y') }}" + PLAIN_TEMPLATE),
        "none": save_model(root / "none", None, temperature=0.25, top_k=7),
    }


@pytest.fixture(scope="module", autouse=True)
def template_processes() -> Iterator[None]:
    """Each template's process is started once, not in every test."""
    loaded: dict[Path, ChatTemplate | None] = {}

    def load(path: Path, tokenizer: Any) -> ChatTemplate | None:
        if path not in loaded:
            loaded[path] = load_chat_template(path, tokenizer)
        return loaded[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load_chat_template", load)
        yield
    for template in loaded.values():
        if template is not None:
            template.close()


class RecordingEngine(EchoEngine):
    """An echo engine that keeps what it was asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []
        self.options: list[dict[str, Any]] = []

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        **options: Any,
    ) -> AsyncGenerator[SequenceOutput, None]:
        self.prompts.append(prompt_token_ids)
        self.params.append(params)
        self.options.append(options)
        outputs = super().generate(request_id, prompt_token_ids, params, **options)
        async with aclosing(outputs):
            async for output in outputs:
                yield output


class ScriptedEngine(EchoEngine):
    """Answers every prompt with the same outputs."""

    def __init__(self, *outputs: SequenceOutput) -> None:
        super().__init__()
        self.script = outputs

    def _outputs(self, *_: Any) -> Iterator[SequenceOutput]:
        return iter(self.script)


class DyingEngine(EchoEngine):
    """Dies after the first token of each sequence."""

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[SequenceOutput, None]:
        outputs = super().generate(*args, **kwargs)
        async with aclosing(outputs):
            yield await anext(outputs)
            raise EngineUnavailableError("The engine stopped.")


Start = Callable[..., Awaitable[NativeBackend]]


@pytest.fixture
def start(folders: dict[str, Path]) -> Start:
    async def start(engine: EchoEngine, model: str = "plain") -> NativeBackend:
        async def factory(config: EngineConfig) -> EchoEngine:
            return engine

        backend = NativeBackend(factory)
        await backend.start(ModelConfig(model_name=str(folders[model]), served_name="m"))
        return backend

    return start


def chat_request(content: Any = "Hello, fox.", **fields: Any) -> ChatCompletionRequest:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    body = {"model": "m", "messages": messages, **fields}
    return parse_request(ChatCompletionRequest, json.dumps(body).encode())


def completion_request(prompt: Any = "Hello, fox.", **fields: Any) -> CompletionRequest:
    return parse_request(
        CompletionRequest, json.dumps({"model": "m", "prompt": prompt, **fields}).encode()
    )


async def chat(
    backend: NativeBackend, content: Any = "Hello, fox.", **fields: Any
) -> openai.types.chat.ChatCompletion:
    """A whole answer, as OpenAI's own client reads it."""
    async with aclosing(backend.chat(chat_request(content, **fields), "r")) as chunks:
        answer = await collect_chat(chunks)
    return openai.types.chat.ChatCompletion.model_validate(json.loads(answer.to_json()))


async def complete(
    backend: NativeBackend, prompt: Any = "Hello, fox.", **fields: Any
) -> openai.types.Completion:
    fields = {"max_tokens": 1000} | fields
    async with aclosing(backend.complete(completion_request(prompt, **fields), "r")) as chunks:
        answer = await collect_completion(chunks)
    return openai.types.Completion.model_validate(json.loads(answer.to_json()))


async def chat_stream(
    backend: NativeBackend, content: Any = "Hello, fox.", **fields: Any
) -> list[openai.types.chat.ChatCompletionChunk]:
    request = chat_request(content, stream=True, **fields)
    async with aclosing(backend.chat(request, "r")) as chunks:
        return [
            openai.types.chat.ChatCompletionChunk.model_validate(json.loads(chunk.to_json()))
            async for chunk in chunks
        ]


def streamed_text(chunks: list[openai.types.chat.ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return "".join(c.delta.content or "" for c in choices if c.index == index)


async def fault(chunks: AsyncIterator[Any]) -> AxionError:
    """The error that comes instead of a first chunk."""
    with pytest.raises(AxionError) as caught:
        await anext(chunks)
    return caught.value


async def test_a_chat_is_answered(start: Start):
    engine = EchoEngine()
    answer = await chat(await start(engine), "Hello, 狐!")
    (choice,) = answer.choices
    assert choice.message.content == "Hello, 狐!"
    assert choice.finish_reason == "stop"
    assert answer.id == "chatcmpl-r"
    assert answer.model == "m"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens
    assert engine.stats.num_running == 0


async def test_a_stream_has_openais_shape(start: Start):
    chunks = await chat_stream(await start(EchoEngine()))
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
        ("chatcmpl-r", chunks[0].created, "m")
    }
    first, *middle, last = chunks
    assert first.choices[0].delta.model_dump(exclude_unset=True) == {
        "role": "assistant",
        "content": "",
    }
    assert all(chunk.choices[0].delta.role is None for chunk in middle)
    assert all(chunk.choices[0].finish_reason is None for chunk in (first, *middle))
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.model_dump(exclude_unset=True) == {}
    assert streamed_text(chunks) == "Hello, fox."
    assert len(middle) > 1
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


async def test_usage_ends_a_stream_that_asks_for_it(start: Start):
    options = {"include_usage": True}
    *chunks, last = await chat_stream(await start(EchoEngine()), stream_options=options)
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 2 * last.usage.prompt_tokens


@given(
    text=st.text(min_size=1, max_size=60),
    stop=st.lists(st.text("abfox, ü狐", min_size=1), max_size=3),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_part_of_a_stop_string_is_ever_sent(start: Start, text: str, stop: list[str]):
    async def run() -> None:
        engine = EchoEngine()
        backend = await start(engine)
        chunks = await chat_stream(backend, text, stop=stop)
        ends = [
            (text.index(string) + len(string), -len(string)) for string in stop if string in text
        ]
        end, negative_length = min(ends, default=(len(text), 0))
        assert streamed_text(chunks) == text[: end + negative_length]
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert engine.stats.num_running == 0

    asyncio.run(run())


async def test_a_stop_string_aborts_the_sequence_before_its_last_chunk(start: Start):
    engine = EchoEngine()
    backend = await start(engine)
    chunks = backend.chat(chat_request("one STOP two" * 50, stop="STOP", stream=True), "r")
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.choices[0].finish_reason:
                assert engine.stats.num_running == 0


async def test_a_stop_string_can_be_part_of_the_answer(start: Start):
    answer = await chat(
        await start(EchoEngine()), "one STOP two", stop="STOP", include_stop_str_in_output=True
    )
    assert answer.choices[0].message.content == "one STOP"


async def test_a_stop_string_does_not_count_before_min_tokens(start: Start):
    backend = await start(EchoEngine())
    answer = await complete(backend, "a.b.c.d.", stop=".", min_tokens=5)
    assert answer.choices[0].text == "a.b.c"


async def test_the_token_that_ends_a_sequence_has_no_text(start: Start):
    token = ord("A") - ord("!") + 1
    end = SequenceOutput(
        "r-0", [token, EOS], None, FinishReason.STOP, stop_token_id=EOS, num_cached_tokens=1
    )
    backend = await start(ScriptedEngine(SequenceOutput("r-0", [token]), end))
    for fields in ({}, {"skip_special_tokens": False}, {"include_stop_str_in_output": True}):
        answer = await chat(backend, **fields)
        assert answer.choices[0].message.content == "AA"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 1


async def test_a_stop_token_of_the_request_has_no_text_either(start: Start):
    backend = await start(EchoEngine())
    token = ord("c") - ord("!") + 1
    answer = await complete(backend, "abcd", stop_token_ids=[token])
    assert answer.choices[0].text == "ab"


@pytest.mark.parametrize("ask", [chat, complete])
async def test_a_choice_says_which_stop_of_the_request_ended_it(start: Start, ask: Any):
    backend = await start(EchoEngine())
    stopped = await ask(backend, "one two three", stop=["never", "two"])
    assert stopped.choices[0].stop_reason == "two"
    token_id = (await backend.tokenize(" two", add_special_tokens=False)).token_ids[0]
    stopped = await ask(backend, "one two three", stop_token_ids=[token_id])
    assert stopped.choices[0].stop_reason == token_id
    for fields in ({"stop": ["never"]}, {"max_tokens": 1}):
        ended = await ask(backend, "one two three", **fields)
        assert "stop_reason" not in ended.choices[0].model_fields_set


async def test_usage_so_far_is_in_every_chunk_that_asks_for_it(start: Start):
    options = {"continuous_usage_stats": True}
    chunks = await chat_stream(await start(EchoEngine()), stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[0] <= 1 < counts[-1]


async def test_a_conversation_is_tokenised_as_a_chat_would_be(start: Start):
    engine = RecordingEngine()
    backend = await start(engine)
    answer = await chat(backend, "Hello, fox.")
    tokens = await backend.tokenize(chat_request("Hello, fox."), with_strings=True)
    assert tokens.token_ids == engine.prompts[0]
    assert len(tokens.token_strings) == len(tokens.token_ids) == answer.usage.prompt_tokens
    assert tokens.max_model_len == engine.info.max_model_len
    assert "Hello, fox." in await backend.detokenize(tokens.token_ids)


async def test_an_answer_cut_by_its_limit_says_so(start: Start):
    answer = await chat(await start(EchoEngine()), "abcdef", max_tokens=3)
    assert answer.choices[0].message.content == "abc"
    assert answer.choices[0].finish_reason == "length"


async def test_a_character_cut_by_the_limit_is_marked(start: Start):
    answer = await chat(await start(EchoEngine()), "a狐", max_tokens=3)
    assert answer.choices[0].message.content == "a\N{REPLACEMENT CHARACTER}"


async def test_choices_are_merged_as_they_come_and_the_prompt_counts_once(start: Start):
    engine = RecordingEngine()
    options = {"include_usage": True}
    backend = await start(engine)
    *chunks, last = await chat_stream(backend, "abc", n=3, seed=7, stream_options=options)
    assert [streamed_text(chunks, i) for i in range(3)] == ["abc"] * 3
    finished = [c.choices[0].index for c in chunks if c.choices[0].finish_reason]
    assert sorted(finished) == [0, 1, 2]
    order = [c.choices[0].index for c in chunks if c.choices[0].delta.content]
    assert order != sorted(order)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 9)
    assert len({params.seed for params in engine.params}) == 3
    assert engine.params[0].seed == 7


async def test_seeds_of_choices_stay_in_range(start: Start):
    engine = RecordingEngine()
    await chat(await start(engine), n=2, seed=2**63 - 1)
    assert [params.seed for params in engine.params] == [2**63 - 1, -(2**63)]


async def test_several_prompts_have_choices_in_order(start: Start):
    answer = await complete(await start(EchoEngine()), ["ab", "cde"], n=2)
    assert [choice.text for choice in answer.choices] == ["ab", "ab", "cde", "cde"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 10)


async def test_a_prompt_may_be_token_ids(start: Start):
    engine = RecordingEngine()
    await complete(await start(engine), [[3, 4], [5]])
    assert engine.prompts == [[3, 4], [5]]


async def test_echo_begins_every_answer_with_its_prompt(start: Start):
    backend = await start(EchoEngine())
    answer = await complete(backend, ["ab", "ü狐"], n=2, echo=True)
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "ü狐ü狐", "ü狐ü狐"]
    (choice,) = (await complete(backend, [3, 4], echo=True)).choices
    assert choice.text == "#$#$"


async def score(backend: NativeBackend, prompt: Any, **fields: Any) -> dict[str, Any]:
    """As JSON: OpenAI's own types have no place for the first token's null."""
    request = completion_request(prompt, echo=True, **fields)
    async with aclosing(backend.complete(request, "r")) as chunks:
        answer: dict[str, Any] = json.loads((await collect_completion(chunks)).to_json())
    return answer


@pytest.mark.parametrize("prompt", ["ab the 狐", [66, 67, 0, 68], "a"], ids=str)
@pytest.mark.parametrize("max_tokens", [0, 1, 50])
async def test_a_prompt_is_scored_in_the_legacy_shape(start: Start, prompt: Any, max_tokens: int):
    engine = RecordingEngine(vocab_size=280)
    answer = await score(await start(engine), prompt, logprobs=2, max_tokens=max_tokens, n=2)
    num_tokens = answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"] // 2
    for choice in answer["choices"]:
        logprobs, text = choice["logprobs"], choice["text"]
        assert {len(entries) for entries in logprobs.values()} == {num_tokens}
        assert logprobs["token_logprobs"] == [None] + [math.log(0.5)] * (num_tokens - 1)
        assert logprobs["top_logprobs"][0] is None
        for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert token in top
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert token in ("<|end|>", text[offset : offset + len(token)]) or "bytes:" in token
        if max_tokens == 0:
            assert choice["finish_reason"] == "length"
            assert text == (prompt if isinstance(prompt, str) else "bcd")


async def test_a_prompt_that_fills_the_context_can_be_scored(start: Start):
    backend = await start(EchoEngine(max_model_len=10))
    answer = await score(backend, [5] * 10, logprobs=0, max_tokens=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 10
    error = await fault(backend.complete(completion_request([5] * 11, max_tokens=0), "r"))
    assert (error.code, error.param) == ("context_length_exceeded", "prompt")


async def test_salt_and_priority_go_to_the_engine(start: Start):
    engine = RecordingEngine()
    backend = await start(engine)
    await chat(backend, cache_salt="tenant 7", priority=-3)
    await complete(backend)
    assert engine.options == [
        {"cache_salt": "tenant 7", "priority": -3, "num_generated": 0},
        {"cache_salt": "", "priority": 0, "num_generated": 0},
    ]


async def cache_key(backend: NativeBackend, **fields: Any) -> bytes:
    return (await backend.prepare_chat(chat_request(**fields))).cache_key


LOOKUP = {"name": "f", "parameters": {"type": "object", "properties": {}}}
SAME_ANSWER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"user": "a"}, {"user": "b"}),
    ({"metadata": {"a": "1"}, "safety_identifier": "x"}, {"prompt_cache_key": "y"}),
    ({"service_tier": "auto", "store": False, "modalities": ["text"]}, {"priority": 4}),
    ({"n": 1, "stop": [], "logprobs": False}, {"stream": False, "temperature": 1}),
    ({"max_tokens": 5}, {"max_completion_tokens": 5}),
    ({"stop": "a"}, {"stop": ["a"]}),
    ({"logit_bias": {"1": 2, "3": 4}}, {"logit_bias": {"3": 4, "1": 2}}),
    ({"top_k": -1, "top_p": 1}, {"top_k": 0, "seed": None}),
    ({"temperature": 0, "seed": 3}, {"temperature": 0, "top_p": 0.5, "top_k": 4}),
    (
        {"content": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        {"content": [{"content": "Hi", "role": "user", "name": None}]},
    ),
]
OTHER_ANSWER: list[dict[str, Any]] = [
    {"content": "Hello, fox!"},
    {"temperature": 0.5},
    {"temperature": 0},
    {"top_p": 0.5},
    {"top_k": 4},
    {"min_p": 0.5},
    {"seed": 1},
    {"seed": 2},
    {"n": 2},
    {"max_tokens": 5},
    {"min_tokens": 5},
    {"stop": "a"},
    {"stop": "b"},
    {"stop_token_ids": [3]},
    {"logit_bias": {"3": 4}},
    {"presence_penalty": 1},
    {"frequency_penalty": 1},
    {"repetition_penalty": 1.1},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 2},
    {"ignore_eos": True},
    {"include_stop_str_in_output": True},
    {"skip_special_tokens": False},
    {"cache_salt": "a"},
    {"cache_salt": "b"},
    {"tools": TOOLS},
    {"tools": [{"type": "function", "function": LOOKUP}]},
]


@pytest.mark.parametrize(("left", "right"), SAME_ANSWER, ids=str)
async def test_what_does_not_decide_the_answer_is_not_in_its_key(
    start: Start, left: dict[str, Any], right: dict[str, Any]
):
    backend = await start(EchoEngine(), "tools")
    assert await cache_key(backend, **left) == await cache_key(backend, **right)


async def test_all_that_decides_the_answer_is_in_its_key(start: Start):
    backend = await start(EchoEngine(), "tools")
    keys = [await cache_key(backend, **fields) for fields in ({}, *OTHER_ANSWER)]
    keys.append(await cache_key(await start(EchoEngine())))  # another model
    assert len(set(keys)) == len(keys)


def test_every_field_of_a_chat_request_is_in_the_key_or_left_out_for_a_reason():
    shown = {field for fields in OTHER_ANSWER for field in fields}
    same = {field for pair in SAME_ANSWER for fields in pair for field in fields}
    left_out = native._NOT_IN_KEY - shown - same
    template = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
    # What they become, a grammar, is one of the sampling parameters, which are in the key whole.
    grammars = {"response_format", *StructuredRequest.model_fields} - set(
        GenerationRequest.model_fields
    )
    assert left_out - template - grammars == {
        "model",
        "messages",
        "stream_options",
        "prompt_cache_retention",
    }
    assert set(ChatCompletionRequest.model_fields) >= native._NOT_IN_KEY


async def test_the_key_of_a_request_is_remembered_and_it_can_still_run(start: Start, monkeypatch):
    backend = await start(EchoEngine())
    first = await backend.prepare_chat(chat_request("abc", user="a"))
    with monkeypatch.context() as patch:
        patch.setattr(native, "_chat_prompt", None)
        second = await backend.prepare_chat(chat_request("abc", user="b"))
    assert (first.cache_key, first.is_deterministic) == (second.cache_key, second.is_deterministic)
    answer = await collect_chat(second.run("r"))
    assert answer.choices[0].message.content == "abc"


async def test_a_template_that_shows_the_date_is_rendered_every_time(start: Start):
    backend = await start(EchoEngine(), "dated")
    for _ in range(2):
        await backend.prepare_chat(chat_request("abc"))
    assert not backend._keys


async def test_a_prepared_chat_is_not_tokenised_twice(start: Start, monkeypatch):
    backend = await start(EchoEngine())
    prepared = await backend.prepare_chat(chat_request("abc"))
    monkeypatch.setattr(native, "_chat_prompt", None)
    answer = await collect_chat(prepared.run("r"))
    assert answer.choices[0].message.content == "abc"
    assert not prepared.is_deterministic


async def test_completions_have_16_tokens_unless_more_are_asked_for(start: Start):
    engine = RecordingEngine()
    backend = await start(engine)
    await complete(backend, "a" * 20, max_tokens=None)
    await chat(backend, "a" * 20)
    assert [params.max_tokens for params in engine.params] == [16, 4096 - 20]


@pytest.mark.parametrize("num_tokens", [10, 11, 5000])
async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(
    start: Start, num_tokens: int
):
    backend = await start(EchoEngine(max_model_len=10))
    for chunks, param in (
        (backend.chat(chat_request("a" * num_tokens), "r"), "messages"),
        (backend.complete(completion_request([5] * num_tokens), "r"), "prompt"),
    ):
        error = await fault(chunks)
        assert isinstance(error, ContextLengthExceededError)
        assert (error.code, error.param) == ("context_length_exceeded", param)
        assert "10 tokens" in error.message
        assert str(num_tokens) in error.message


async def test_a_limit_that_does_not_fit_is_refused_with_all_numbers(start: Start):
    backend = await start(EchoEngine(max_model_len=10))
    for name in ("max_tokens", "max_completion_tokens"):
        error = await fault(backend.chat(chat_request("abcd", **{name: 7}), "r"))
        assert error.code == "context_length_exceeded"
        assert error.param == name
        for number in ("10", "11", "4", "7", "6"):
            assert number in error.message
    answer = await chat(backend, "abcd", max_tokens=6)
    assert answer.choices[0].message.content == "abcd"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [99]}, "prompt"),
        ({"logit_bias": {"99": 1}}, "logit_bias"),
        ({"stop_token_ids": [99]}, "stop_token_ids"),
        ({"min_tokens": 20}, "min_tokens"),
    ],
)
async def test_what_the_engine_cannot_take_is_a_400(
    start: Start, fields: dict[str, Any], param: str
):
    engine = EchoEngine(vocab_size=99)
    request = completion_request(**{"prompt": [1]} | fields)
    error = await fault((await start(engine)).complete(request, "r"))
    assert isinstance(error, InvalidRequestError)
    assert error.param == param
    assert engine.stats.num_prompt_tokens == 0


async def test_the_models_own_sampling_defaults_are_used(start: Start):
    engine = RecordingEngine()
    backend = await start(engine, "none")
    await complete(backend)
    await complete(backend, temperature=1, top_k=0)
    assert [(p.temperature, p.top_k) for p in engine.params] == [(0.25, 7), (1, 0)]


@given(text=st.text(min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_log_probabilities_have_the_exact_bytes_of_the_answer(start: Start, text: str):
    async def run() -> None:
        backend = await start(EchoEngine(vocab_size=280))
        chunks = await chat_stream(backend, text, logprobs=True, top_logprobs=3)
        sent = expected = ""
        for chunk in chunks:
            (choice,) = chunk.choices
            sent += choice.delta.content or ""
            entries = (choice.logprobs and choice.logprobs.content) or []
            data = b"".join(bytes(entry.bytes or ()) for entry in entries)
            expected += data.decode()  # whole characters: each entry is with its text
            assert sent == expected
            assert all(len(entry.top_logprobs) == 3 for entry in entries)
            assert all(entry.top_logprobs[0].bytes == entry.bytes for entry in entries)
        assert sent == text

    asyncio.run(run())


async def test_a_part_of_a_character_is_shown_as_openai_does(start: Start):
    backend = await start(EchoEngine())
    answer = await chat(backend, "狐", logprobs=True)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == ["\\xe7", "\\x8b", "\\x90"]
    assert [entry.bytes for entry in entries] == [[0xE7], [0x8B], [0x90]]
    assert all(entry.top_logprobs == [] for entry in entries)
    legacy = (await complete(backend, "狐", logprobs=0)).choices[0].logprobs
    assert legacy is not None
    assert legacy.tokens == ["bytes:\\xe7", "bytes:\\x8b", "bytes:\\x90"]


async def test_legacy_log_probabilities_have_one_entry_a_token(start: Start):
    answer = await complete(await start(EchoEngine(vocab_size=280)), "ab the 狐", logprobs=2)
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    for token, offset, top in zip(
        logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, strict=True
    ):
        assert token in top
        assert len(top) == 2
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token)


async def test_the_tokens_of_a_stop_string_go_with_it(start: Start):
    backend = await start(EchoEngine())
    answer = await chat(backend, "abSTOPcd", stop="STOP", logprobs=True)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == ["a", "b"]


async def test_an_impossible_token_has_openais_lowest_log_probability(start: Start):
    never = TokenLogprobs(float("-inf"), [(35, float("-inf"))])
    end = SequenceOutput("r-0", [34], [never], FinishReason.LENGTH)
    backend = await start(ScriptedEngine(end))
    answer = await chat(backend, logprobs=True, top_logprobs=1)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    (entry,) = answer.choices[0].logprobs.content
    assert (entry.logprob, entry.top_logprobs[0].logprob) == (-9999.0, -9999.0)


async def test_tool_calls_are_taken_out_of_the_answer(start: Start):
    backend = await start(EchoEngine(), "tools")
    answer = await chat(backend, f"Let me see.\n{CALL}\n{CALL}", tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.tool_calls is not None
    first, second = choice.message.tool_calls
    assert first.type == "function"
    assert (first.function.name, first.function.arguments) == ("f", '{"x": 1}')
    assert first.id.startswith("call_")
    assert first.id != second.id
    only = await chat(backend, CALL, tools=TOOLS)
    assert only.choices[0].message.content is None


async def test_a_tool_call_is_streamed_in_openais_deltas(start: Start):
    backend = await start(EchoEngine(), "tools")
    chunks = await chat_stream(backend, f"Hm. {CALL}{CALL}", tools=TOOLS)
    assert streamed_text(chunks) == "Hm."
    deltas = [chunk.choices[0].delta.tool_calls for chunk in chunks]
    calls = [call for (call,) in filter(None, deltas)]
    for index in (0, 1):
        first, *others = (call for call in calls if call.index == index)
        assert first.id
        assert first.type == "function"
        assert first.function
        assert (first.function.name, first.function.arguments) == ("f", "")
        assert len(others) > 3
        assert all(call.id is call.type is call.function.name is None for call in others)
        assert "".join(call.function.arguments for call in others) == '{"x": 1}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_only_one_call_is_generated_where_calls_may_not_be_parallel(start: Start):
    engine = EchoEngine()
    backend = await start(engine, "tools")
    content = f"Hm. {CALL}\n{CALL} and more"
    answer = await chat(backend, content, tools=TOOLS, parallel_tool_calls=False, logprobs=True)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Hm."
    assert choice.message.tool_calls is not None
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"x": 1}']
    assert choice.logprobs is not None
    tokens = [entry.token for entry in choice.logprobs.content or ()]
    assert content.startswith("".join(tokens))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(tokens) < answer.usage.prompt_tokens
    assert engine.stats.num_running == 0


async def test_a_call_that_max_tokens_cuts_keeps_what_was_there(start: Start):
    backend = await start(EchoEngine(), "tools")
    for parallel in (True, False):
        answer = await chat(backend, CALL, tools=TOOLS, max_tokens=44, parallel_tool_calls=parallel)
        (choice,) = answer.choices
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert '{"x": 1}'.startswith(call.function.arguments)
        assert call.function.arguments not in ("", '{"x": 1}')


async def test_a_template_whose_format_is_unknown_gets_calls_as_json(start: Start):
    backend = await start(EchoEngine(), "json")
    answer = await chat(backend, '{"name": "f", "parameters": {}}', tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_reasoning_is_told_from_the_answer(start: Start):
    backend = await start(EchoEngine(), "reasoning")
    content = f"<think>\nHm.\n</think>\n\nYes. {CALL}"
    answer = await chat(backend, content, tools=TOOLS, logprobs=True)
    message = answer.choices[0].message
    assert getattr(message, "reasoning_content", None) == "Hm."
    assert message.content == "Yes."
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].logprobs is not None
    tokens = [entry.token for entry in answer.choices[0].logprobs.content or ()]
    assert "".join(tokens) == content
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    inside = answer.usage.completion_tokens_details.reasoning_tokens
    assert len("Hm.") < inside < len("<think>\nHm.\n</think>")
    chunks = await chat_stream(backend, content)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    reasoning = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(reasoning) == "Hm."
    assert streamed_text(chunks) == f"Yes. {CALL}"


async def test_reasoning_that_the_prompt_opens_needs_no_tag(start: Start):
    backend = await start(EchoEngine(), "reasoning")
    answer = await chat(backend, "Hm.</think>Yes.", chat_template_kwargs={"enable_thinking": True})
    message = answer.choices[0].message
    assert getattr(message, "reasoning_content", None) == "Hm."
    assert message.content == "Yes.<think>"
    messages = [{"role": "assistant", "content": "<think>a"}]
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    answer = await chat(backend, messages, **fields)
    assert answer.choices[0].message.content == ""


async def test_an_answer_without_reasoning_has_none(start: Start):
    answer = await chat(await start(EchoEngine(), "reasoning"), "Yes.")
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


async def test_earlier_reasoning_reaches_a_template_that_reads_it(start: Start):
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "Hm."},
    ]
    answer = await chat(await start(EchoEngine(), "reasoning"), messages)
    assert answer.choices[0].message.content == "x(Hm.)y"
    error = await fault((await start(EchoEngine())).chat(chat_request(messages), "r"))
    assert error.param == "messages[1].reasoning_content"


@pytest.mark.parametrize(
    ("model", "effort", "prompt"),
    [
        ("effort", "high", "x high"),
        ("effort", "none", "x none"),
        ("reasoning", "none", "x"),
        ("plain", "none", "x"),  # it does not reason
    ],
)
async def test_reasoning_effort_reaches_the_template(
    start: Start, model: str, effort: str, prompt: str
):
    answer = await chat(await start(EchoEngine(), model), "x", reasoning_effort=effort)
    assert answer.choices[0].message.content == prompt


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("plain", {"reasoning_effort": "low"}),
        ("reasoning", {"reasoning_effort": "low"}),
        ("always", {"reasoning_effort": "none"}),
        (
            "reasoning",
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
        ),
    ],
)
async def test_reasoning_effort_that_the_template_cannot_honour_is_refused(
    start: Start, model: str, fields: dict[str, Any]
):
    error = await fault((await start(EchoEngine(), model)).chat(chat_request(**fields), "r"))
    assert error.status == 400
    assert error.param == "reasoning_effort"
    assert "'none'" not in error.message  # Anthropic's API has another word for it


async def test_log_probabilities_of_a_tool_call_are_not_lost(start: Start):
    backend = await start(EchoEngine(), "tools")
    content = f"Hm. {CALL}"
    answer = await chat(backend, content, tools=TOOLS, logprobs=True)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert "".join(entry.token for entry in entries) == content


async def test_a_tool_call_stays_text_where_none_is_expected(start: Start):
    backend = await start(EchoEngine(), "tools")
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = await chat(backend, CALL, **fields)
        assert answer.choices[0].message.content == CALL
        assert answer.choices[0].finish_reason == "stop"
    malformed = await chat(backend, "<tool_call>oops</tool_call>", tools=TOOLS)
    assert malformed.choices[0].message.content == "<tool_call>oops</tool_call>"
    assert malformed.choices[0].finish_reason == "stop"


async def test_tool_calls_are_found_where_their_tags_are_special_tokens(start: Start):
    backend = await start(EchoEngine(), "special")
    answer = await chat(backend, CALL, tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (await chat(backend, "<tool_call>x")).choices[0].message.content == "x"


async def test_special_tokens_around_reasoning_and_calls_are_read_and_not_shown(start: Start):
    backend = await start(EchoEngine(), "mistral")
    content = "[THINK]Hm.[/THINK]Yes.<|other|>[TOOL_CALLS]f[ARGS]{}"
    answer = await chat(backend, content, tools=TOOLS)
    message = answer.choices[0].message
    assert getattr(message, "reasoning_content", None) == "Hm."
    assert message.content == "Yes."
    assert message.tool_calls is not None
    assert len(message.tool_calls[0].id) == 9
    assert (await chat(backend, content)).choices[0].message.content == "Yes.f{}"
    shown = await chat(backend, content, skip_special_tokens=False)
    assert shown.choices[0].message.content == "Yes.<|other|>[TOOL_CALLS]f[ARGS]{}"


async def test_a_developer_is_the_system_to_a_template_that_knows_none(start: Start):
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]
    answer = await chat(await start(EchoEngine()), messages)
    assert answer.choices[0].message.content == "[system]xy"


async def test_an_earlier_tool_call_reaches_the_template_with_its_arguments(start: Start):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 42}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "y", "tool_call_id": "c", "name": "f"},
    ]
    answer = await chat(await start(EchoEngine(), "tools"), messages)
    assert answer.choices[0].message.content == "x42y"


async def test_template_variables_reach_the_template(start: Start):
    backend = await start(EchoEngine(), "tools")
    answer = await chat(backend, "hey", chat_template_kwargs={"shout": True})
    assert answer.choices[0].message.content == "hey!"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS}, "tools"),
        ({"chat_template_kwargs": {"shout": True}}, "chat_template_kwargs.shout"),
        ({"content": [{"role": "user", "content": "x", "name": "ann"}]}, "messages[0].name"),
        (
            {
                "content": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    }
                ]
            },
            "messages[0].tool_calls",
        ),
    ],
)
async def test_what_the_template_would_drop_is_refused_by_name(
    start: Start, fields: dict[str, Any], param: str
):
    backend = await start(EchoEngine())
    error = await fault(backend.chat(chat_request(**fields), "r"))
    assert isinstance(error, InvalidRequestError)
    assert error.param == param


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("{% for m in messages %}{{ m.name }}{% endfor %}", True),
        ("{%- for message in loop_messages %}{{ message['name'] }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.get('name') }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ name }}", False),
        ("{% for m in messages %}{% for t in m.tool_calls %}{{ t.name }}{% endfor %}", False),
        ("", False),
    ],
)
def test_a_template_that_reads_names_is_told_from_one_that_does_not(source: str, reads: bool):
    assert native._reads(source, "name") is reads


async def test_a_model_without_a_chat_template_completes_only(start: Start):
    backend = await start(EchoEngine(), "none")
    error = await fault(backend.chat(chat_request(), "r"))
    assert "/v1/completions" in error.message
    assert (await complete(backend)).choices[0].text == "Hello, fox."


async def test_leaving_early_frees_every_sequence(start: Start):
    engine = EchoEngine()
    backend = await start(engine)
    for n in (1, 5):
        async with aclosing(backend.chat(chat_request("a" * 99, n=n, stream=True), "r")) as chunks:
            await anext(chunks)
            assert engine.stats.num_running == n
        assert engine.stats.num_running == 0


async def test_cancelling_frees_every_sequence(start: Start):
    engine = EchoEngine(token_delay_s=3600)
    backend = await start(engine)
    for n in (1, 5):
        task = asyncio.create_task(chat(backend, "abc", n=n))
        while engine.stats.num_running < n:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.stats.num_running == 0


async def test_an_engine_that_dies_ends_the_stream_with_an_error(start: Start):
    for n in (1, 3):
        engine = DyingEngine()
        backend = await start(engine)
        received = []
        with pytest.raises(EngineUnavailableError):
            async with aclosing(backend.chat(chat_request(n=n, stream=True), "r")) as chunks:
                async for chunk in chunks:
                    received.append(chunk)  # noqa: PERF401
        assert received
        assert all(chunk.choices[0].finish_reason is None for chunk in received)
        assert engine.stats.num_running == 0


async def test_an_engine_that_is_down_is_an_error_before_the_first_chunk(start: Start):
    engine = EchoEngine()
    backend = await start(engine)
    await backend.stop(0)
    for n in (1, 3):
        error = await fault(backend.chat(chat_request(n=n), "r"))
        assert error.status == 503


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            SequenceOutput("r-0", [], None, FinishReason.ERROR, error="No logits."),
            InternalError,
        ),
        (SequenceOutput("r-0", [], None, FinishReason.ABORT), EngineUnavailableError),
    ],
)
async def test_a_sequence_that_fails_is_an_error(
    start: Start, output: SequenceOutput, expected: type[AxionError]
):
    backend = await start(ScriptedEngine(output))
    assert isinstance(await fault(backend.chat(chat_request(), "r")), expected)


async def test_an_answer_without_a_token_is_empty(start: Start):
    answer = await chat(await start(NullEngine()))
    assert answer.choices[0].message.content == ""
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


async def test_a_backend_says_how_it_is(start: Start):
    async def factory(config: EngineConfig) -> EchoEngine:
        raise AssertionError

    unstarted = NativeBackend(factory)
    assert (await unstarted.health()).state is BackendState.STARTING
    with pytest.raises(EngineUnavailableError):
        unstarted.chat(chat_request(), "r")
    await unstarted.stop(0)
    backend = await start(EchoEngine())
    health = await backend.health()
    assert health.state is BackendState.READY
    assert health.info is not None
    await backend.stop(0)
    assert (await backend.health()).state is BackendState.STOPPED


async def test_the_engine_is_started_with_the_models_limits(folders: dict[str, Path]):
    configs = []

    async def factory(config: EngineConfig) -> EchoEngine:
        configs.append(config)
        return EchoEngine()

    backend = NativeBackend(factory)
    path = str(folders["none"])
    limits = {
        "max_seq_len": 77,
        "max_num_seqs": 3,
        "quantization": "int8",
        "speculative": "ngram",
        "draft_model": str(folders["none"]),
    }
    await backend.start(ModelConfig(model_name=path, **limits))
    (config,) = configs
    assert config.model_path == str(folders["none"])
    assert (config.max_model_len, config.max_num_seqs) == (77, 3)
    assert (config.speculative, config.draft_model_path) == ("ngram", config.model_path)
    assert config.quantization == "int8"


async def test_an_engine_that_fails_to_start_fails_the_backend(folders: dict[str, Path]):
    async def factory(config: EngineConfig) -> EchoEngine:
        raise ModelLoadError("Too large.")

    with pytest.raises(ModelLoadError, match="Too large"):
        await NativeBackend(factory).start(ModelConfig(model_name=str(folders["none"])))


async def test_a_damaged_tokenizer_stops_the_engine_again(tmp_path: Path):
    folder = save_model(tmp_path / "damaged", None)
    (folder / "tokenizer.json").write_text("{}")
    engine = EchoEngine()

    async def factory(config: EngineConfig) -> EchoEngine:
        return engine

    with pytest.raises(ModelLoadError):
        await NativeBackend(factory).start(ModelConfig(model_name=str(folder)))
    assert engine.health().state is BackendState.STOPPED


@pytest.mark.parametrize("generation", [{"temperature": "hot"}, {"temperature": -1}])
async def test_a_wrong_generation_config_is_named(tmp_path: Path, generation: dict[str, Any]):
    folder = save_model(tmp_path / "wrong", None, **generation)

    async def factory(config: EngineConfig) -> EchoEngine:
        return EchoEngine()

    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        await NativeBackend(factory).start(ModelConfig(model_name=str(folder)))


async def test_a_huge_prompt_that_cannot_fit_is_refused_unencoded(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(TextTokenizer, "encode")
    backend = await start(EchoEngine(max_model_len=100))
    with pytest.raises(ContextLengthExceededError, match=r"has 100 tokens.* has at least 28572,"):
        await complete(backend, "a" * 200_000)
    with pytest.raises(ContextLengthExceededError, match=r"has 100 tokens.* has at least 28572,"):
        await chat(backend, "a" * 200_000)


async def test_a_long_prompt_is_encoded_off_the_event_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    threads = []
    encode = TextTokenizer.encode

    def recording(*args: Any, **kwargs: Any) -> list[int]:
        threads.append(threading.current_thread())
        return encode(*args, **kwargs)

    monkeypatch.setattr(TextTokenizer, "encode", recording)
    backend = await start(EchoEngine(max_model_len=100_000))
    await complete(backend, "a" * 50_000, max_tokens=1)
    await complete(backend, ["a" * 500] * 100, max_tokens=1)
    await chat(backend, "a" * 50_000, max_tokens=1)
    assert len(threads) == 102
    assert threading.main_thread() not in threads


def test_chunks_of_a_completion_have_openais_shape(folders: dict[str, Path], start: Start):
    async def run() -> list[CompletionChunk]:
        backend = await start(EchoEngine())
        request = completion_request(stream=True, stream_options={"include_usage": True})
        async with aclosing(backend.complete(request, "r")) as chunks:
            return [chunk async for chunk in chunks]

    chunks = [json.loads(chunk.to_json()) for chunk in asyncio.run(run())]
    for data in chunks[:-1]:
        assert data.keys() == {
            "id", "object", "created", "model", "system_fingerprint", "choices", "usage",
        }  # fmt: skip
        assert data["usage"] is None
        assert data["choices"][0].keys() == {"index", "text", "logprobs", "finish_reason"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0


async def test_a_chunk_is_one_line(start: Start):
    backend = await start(EchoEngine())
    request = chat_request("a\nb\rc", stream=True)
    async with aclosing(backend.chat(request, "r")) as chunks:
        async for chunk in chunks:
            assert len(chunk.to_json().splitlines()) == 1
