"""The offline face."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from axion import LLM, SamplingParams
from axion.errors import AxionError, InvalidRequestError
from axion.types import FinishReason


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(str(tiny_model), device="cpu", kv_cache_bytes=2**24, max_model_len=256)


def test_many_prompts_are_answered_in_order(llm: LLM):
    prompts = ["The quick", "Grüße", "brown fox jumps over"]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    together = llm.generate(prompts, params)
    alone = [llm.generate(prompt, params)[0] for prompt in prompts]
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]
    assert all(g.text == llm.tokenizer.decode(g.token_ids) for g in together)
    assert all(g.finish_reason is FinishReason.LENGTH for g in together)


def test_token_ids_are_a_prompt_too(llm: LLM):
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    text = "The quick brown"
    [by_ids] = llm.generate(llm.tokenizer.encode(text), params)
    [by_text] = llm.generate(text, params)
    assert by_ids.token_ids == by_text.token_ids


def test_each_prompt_may_have_its_own_parameters(llm: LLM):
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 7)]
    assert [len(g.token_ids) for g in llm.generate(["a", "b"], params)] == [1, 7]


def test_a_stop_string_cuts_the_text(llm: LLM):
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    [whole] = llm.generate("The", params)
    stop = whole.text[10:13]
    stopped = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=(stop,))
    [cut] = llm.generate("The", stopped)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason is FinishReason.STOP
    assert not llm.engine.has_unfinished


def test_a_stop_string_counts_after_min_tokens(llm: LLM):
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    [whole] = llm.generate("The", params)
    late = SamplingParams(
        temperature=0, max_tokens=40, min_tokens=30, ignore_eos=True, stop=(whole.text[3:5],)
    )
    [cut] = llm.generate("The", late)
    assert len(cut.token_ids) >= 30
    assert whole.text.startswith(cut.text)


def test_a_stop_string_among_drafts_that_came_true_ends_the_tokens_too(llm: LLM, tiny_model: Path):
    drafting = LLM(
        str(tiny_model), device="cpu", kv_cache_bytes=2**24, max_model_len=256, speculative="ngram"
    )
    [letter] = llm.tokenizer.encode("a")
    params = SamplingParams(
        temperature=0, max_tokens=40, logit_bias={letter: 100.0}, stop=("a" * 7,), logprobs=0
    )
    [expected], [found] = (each.generate([[letter] * 9], params) for each in (llm, drafting))
    assert found.token_ids == expected.token_ids == [letter] * 7
    assert found.text == expected.text == ""
    assert len(found.logprobs or ()) == 7
    assert drafting.engine.stats.num_accepted_tokens > 0


def test_it_works_where_an_event_loop_runs(tiny_model: Path):
    async def notebook() -> LLM:
        return LLM(str(tiny_model), device="cpu", kv_cache_bytes=2**24, max_model_len=256)

    assert asyncio.run(notebook()).generate([]) == []


def test_chat_uses_the_models_template(llm: LLM):
    params = SamplingParams(temperature=0, max_tokens=4)
    answer = llm.chat([{"role": "user", "content": "Hello"}], params)
    assert answer.prompt_token_ids[0] == llm.tokenizer.token_to_id("<|user|>")
    assert answer.prompt_token_ids[-1] == llm.tokenizer.token_to_id("<|assistant|>")


def test_a_prompt_that_is_refused_leaves_nothing_running(llm: LLM):
    with pytest.raises(InvalidRequestError, match="prompt"):
        llm.generate(["fine", []])
    assert not llm.engine.has_unfinished


def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(AxionError, match="does not exist"):
        LLM(str(tmp_path / "missing"))


def test_a_prompt_is_scored(llm: LLM):
    params = SamplingParams(max_tokens=0, prompt_logprobs=2)
    [generation] = llm.generate([[5, 6, 7]], params)
    assert generation.token_ids == []
    assert generation.prompt_logprobs is not None
    assert [len(entry.top) for entry in generation.prompt_logprobs] == [2, 2]
    assert llm.generate([[5, 6]])[0].prompt_logprobs is None
