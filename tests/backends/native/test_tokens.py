"""What requests say of tokens by their ids: how many of the prompt are kept, which are forbidden,
and what an answer tells of them."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from axion.openai.chat_answer import collect_chat
from axion.openai.completions import collect_completion
from axion.types import FinishReason, SequenceOutput, TokenLogprobs
from tests.backends.native.harness import (
    EOS,
    RecordingEngine,
    ScriptedEngine,
    Start,
    chat,
    chat_request,
    complete,
    completion_request,
    fault,
)
from tests.echo_engine import EchoEngine

A, B = 65, 66  # tokens of one byte


async def whole(backend: Any, kind: str, prompt: str = "ab", **fields: Any) -> dict[str, Any]:
    """As JSON: OpenAI's own types have no place for what vLLM adds."""
    if kind == "chat":
        async with aclosing(backend.chat(chat_request(prompt, **fields), "r")) as chunks:
            data = (await collect_chat(chunks)).to_json()
    else:
        async with aclosing(backend.complete(completion_request(prompt, **fields), "r")) as chunks:
            data = (await collect_completion(chunks)).to_json()
    answer: dict[str, Any] = json.loads(data)
    return answer


async def stream(backend: Any, kind: str, **fields: Any) -> list[dict[str, Any]]:
    request: Any = (chat_request if kind == "chat" else completion_request)(stream=True, **fields)
    run = backend.chat if kind == "chat" else backend.complete
    async with aclosing(run(request, "r")) as chunks:
        return [json.loads(chunk.to_json()) async for chunk in chunks]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, 3),
        ({"truncate_prompt_tokens": 99}, 8),
        ({"truncate_prompt_tokens": -1}, 8),
        ({"truncate_prompt_tokens": -1, "max_tokens": 14}, 6),
    ],
    ids=str,
)
async def test_the_last_tokens_of_a_prompt_are_kept(start: Start, fields: dict, kept: int):
    engine = RecordingEngine(max_model_len=20)
    backend = await start(engine)
    await chat(backend, "abcdefgh", **fields)
    await complete(backend, ["abcdefgh", "a"], **{"max_tokens": 4} | fields)
    await complete(backend, [*range(A, A + 8)], **{"max_tokens": 4} | fields)
    expected = [*range(A, A + 8)][-kept:]
    assert engine.prompts == [expected, expected, [A], expected]


async def test_what_is_echoed_is_what_was_kept(start: Start):
    answer = await whole(
        await start(EchoEngine()), "text", "abcd", truncate_prompt_tokens=2, echo=True
    )
    assert answer["choices"][0]["text"].startswith("cd")
    assert answer["usage"]["prompt_tokens"] == 2


async def test_a_huge_prompt_is_cut_before_it_is_encoded(start: Start, monkeypatch):
    engine = RecordingEngine()
    backend = await start(engine)
    encoded = []
    tokenizer = backend._loaded().tokenizer
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda text, **kw: encoded.append(len(text)) or encode(text, **kw)
    )
    await complete(backend, "a" * 1_000_000, truncate_prompt_tokens=5)
    assert engine.prompts == [[A] * 5]
    assert max(encoded) < 1000


async def test_words_are_forbidden_alone_and_behind_a_space(start: Start):
    engine = RecordingEngine()
    backend = await start(engine)
    token = backend._loaded().tokenizer.token_to_id
    fields = {"bad_words": ["a", "b c", " the", "fox"]}
    await chat(backend, **fields)
    await complete(backend, **fields)
    spaced_the, the = token("Ġthe"), token("the")
    assert spaced_the is not None
    for params in engine.params:
        words = params.bad_words_token_ids
        assert (A,) in words
        assert (B, token("Ġ"), token("c")) in words
        assert ((spaced_the,) in words) == (the is not None)
        assert all(words)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bad_words": ["a", "  "]}, "bad_words"),
        ({"allowed_token_ids": [1, 9999]}, "allowed_token_ids"),
    ],
    ids=str,
)
async def test_what_cannot_be_forbidden_or_allowed_is_refused(
    start: Start, fields: dict, param: str
):
    backend = await start(EchoEngine(vocab_size=280))
    for run in (
        backend.chat(chat_request(**fields), "r"),
        backend.complete(completion_request(**fields), "r"),
    ):
        assert (await fault(run)).param == param


async def test_allowed_tokens_reach_the_engine(start: Start):
    engine = RecordingEngine()
    await chat(await start(engine), allowed_token_ids=[7, 5], bad_words=[])
    assert engine.params[0].allowed_token_ids == (7, 5)
    assert engine.params[0].bad_words_token_ids == ()


@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_every_token_of_prompt_and_answer_is_told_by_its_id(start: Start, kind: str):
    backend = await start(EchoEngine())
    fields = {"return_token_ids": True, "n": 2, "stop": "zz"}  # text is held back for the stop
    answer = await whole(backend, kind, **fields)
    assert [choice["token_ids"] for choice in answer["choices"]] == [[A, B]] * 2
    assert answer["usage"]["completion_tokens"] == 4
    chunks = await stream(backend, kind, **fields)
    token_ids: dict[int, list[int]] = {0: [], 1: []}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        token_ids[choice["index"]] += choice["token_ids"]
    hello = backend._loaded().tokenizer.encode("Hello, fox.")
    assert token_ids == {0: hello, 1: hello}
    if kind == "chat":
        assert answer["prompt_token_ids"] == [A, B]
        assert [len(chunk.get("prompt_token_ids", ())) for chunk in chunks[:2]] == [len(hello), 0]
    else:
        assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[A, B]] * 2
        told = [c["index"] for chunk in chunks for c in chunk["choices"] if "prompt_token_ids" in c]
        assert sorted(told) == [0, 1]


async def test_the_token_that_ends_an_answer_is_told_and_what_a_stop_string_cuts(start: Start):
    end = SequenceOutput("r-0", [A, EOS], finish_reason=FinishReason.STOP, stop_token_id=EOS)
    answer = await whole(await start(ScriptedEngine(end)), "chat", return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == [A, EOS]
    more = SequenceOutput("r-0", [A, B, A, A], finish_reason=FinishReason.LENGTH)
    backend = await start(ScriptedEngine(more))
    answer = await whole(backend, "text", return_token_ids=True, stop="ba")
    assert answer["choices"][0]["text"] == "a"
    assert answer["choices"][0]["token_ids"] == [A, B, A]


@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_no_token_ids_are_told_unless_asked_for(start: Start, kind: str):
    answer = await whole(await start(EchoEngine()), kind, return_token_ids=False)
    assert "token_ids" not in json.dumps(answer)


@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_a_prompts_log_probabilities_are_in_vllms_form(start: Start, kind: str):
    scores = [TokenLogprobs(-2.5, [(A, -0.5), (B, -2.5)], rank=2)]
    other = [TokenLogprobs(float("-inf"), [(A, -0.5), (B, -2.5)], rank=280)]
    best = {"logprob": -0.5, "rank": 1, "decoded_token": "a"}
    for prompt_logprobs, own in (
        (scores, {"logprob": -2.5, "rank": 2, "decoded_token": "b"}),
        (other, {"logprob": -9999.0, "rank": 280, "decoded_token": "b"}),
    ):
        backend = await start(
            ScriptedEngine(
                SequenceOutput("r-0", [], prompt_logprobs=prompt_logprobs),
                SequenceOutput("r-0", [A], finish_reason=FinishReason.LENGTH),
            )
        )
        num_top = 2 if prompt_logprobs is scores else 1
        answer = await whole(backend, kind, prompt_logprobs=num_top)
        where = answer if kind == "chat" else answer["choices"][0]
        assert where["prompt_logprobs"] == [None, {str(B): own, str(A): best}]
        assert list(where["prompt_logprobs"][1]) == [str(B), str(A)], "the prompt's own comes first"


async def test_one_choice_of_a_chat_scores_the_prompt_for_all(start: Start):
    engine = RecordingEngine(vocab_size=280)
    answer = await whole(await start(engine), "chat", prompt_logprobs=0, n=2, seed=5)
    assert [params.prompt_logprobs for params in engine.params] == [0, None]
    assert [params.seed for params in engine.params] == [5, 6]
    assert len(answer["prompt_logprobs"]) == 2


async def test_an_echo_and_vllms_field_have_as_many_alternatives_as_each_asks_for(start: Start):
    backend = await start(EchoEngine(vocab_size=280))
    answer = await whole(backend, "text", echo=True, logprobs=0, prompt_logprobs=2)
    [choice] = answer["choices"]
    assert len(choice["logprobs"]["top_logprobs"][1]) == 1
    assert len(choice["prompt_logprobs"][1]) >= 2
