"""The whole engine against transformers: chunked, batched, cached, preempted, and alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from axion.engine import model_runner
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.kv_cache import KVCacheLayout, lay_out
from axion.engine.messages import AddRequest
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.models.base import CausalLM
from axion.models.hybrid import HybridForCausalLM
from axion.models.registry import model_classes
from axion.parity.reference import forget
from axion.types import EngineConfig, FinishReason, SamplingParams, SequenceOutput
from tests.parity.checkpoints import CASES, build_tiny, save_tiny

NUM_TOKENS = 32
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=5)


def make_core(path: Path, **options) -> EngineCore:
    options = {"kv_cache_bytes": 2**24, "max_model_len": 512, **options}
    return load_engine(EngineConfig(model_path=str(path), device="cpu", dtype="float32", **options))


def run(core: EngineCore, prompts: dict[str, list[int]], params: SamplingParams = GREEDY):
    """All outputs of each request, in order."""
    outputs: dict[str, list[SequenceOutput]] = {name: [] for name in prompts}
    for name, prompt in prompts.items():
        assert core.add(AddRequest(name, prompt, params)) is None
    while core.has_unfinished:
        for output in core.step():
            outputs[output.request_id].append(output)
    return outputs


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def transformers_model(path: Path) -> PreTrainedModel:
    [architecture] = AutoConfig.from_pretrained(path).architectures
    return getattr(transformers, architecture).from_pretrained(path, dtype=torch.float32).eval()


@torch.inference_mode()
def references(
    model: PreTrainedModel, prompt: list[int], answer: list[int]
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """transformers' greedy tokens and the log-probabilities at each of them.

    First of one pass over an answer: where its best is the answer's each time, it generates the
    same. Then as it generates: some models have another rope for each length.
    """
    input_ids = torch.tensor([prompt + answer[:-1]])
    logits = model(input_ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
    yield logits.argmax(-1).tolist(), logits.log_softmax(-1)
    yield generate(model, prompt)


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """The same, as transformers generates."""
    forget(model)
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return (
        result.sequences[0, len(prompt) :].tolist(),
        torch.cat(result.logits).float().log_softmax(-1),
    )


def is_child(cls: type[CausalLM]) -> bool:
    """Whether an architecture is another with a difference."""
    return any("architectures" in vars(base) for base in cls.__mro__[1:] if base is not CausalLM)


def equals(outputs: list[SequenceOutput], tokens: list[int], logprobs: torch.Tensor) -> bool:
    """Whether these are the tokens, and their scores those of the best five at each."""
    if tokens_of(outputs) != tokens:
        return False
    tops = [entry.top for output in outputs for entry in output.logprobs]
    ids = torch.tensor([[token for token, _ in top] for top in tops])
    scores = torch.tensor([[score for _, score in top] for top in tops])
    return bool((logprobs.gather(-1, ids) - scores).abs().max() <= 1e-4)


def is_greedy(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> bool:
    assert len(answer) == NUM_TOKENS
    return any(tokens == answer for tokens, _ in references(model, prompt, answer))


# What a field changes within a model, and an architecture of another's, is compared in
# tests/parity. Of models with states one without attention, one with both in turn and a state for
# an indexer's keys, one with both in each layer; and one that attends to blocks.
ENGINE_CASES = {
    *{
        row.architecture: name
        for name, row in reversed(CASES.items())
        if not issubclass(cls := model_classes()[row.architecture], HybridForCausalLM)
        and not is_child(cls)
    }.values(),
    *("mamba", "qwen4-exp-seeing", "falcon-h1", "minimax-m3"),
    *("llama-rope-dynamic", "llama-rope-longrope", "gemma3-rope-linear", "olmo3-yarn"),
}


@pytest.mark.parametrize("case", sorted(ENGINE_CASES))
def test_the_engine_equals_transformers(case: str, tmp_path: Path):
    path = save_tiny(case, tmp_path)
    core = make_core(path, max_num_batched_tokens=24, max_num_seqs=3, block_size=8)
    generator = torch.Generator().manual_seed(1)
    prompts = {
        str(n): torch.randint(1, core.info.vocab_size, (n,), generator=generator).tolist()
        for n in (1, 17, 100)
    }
    model = build_tiny(case)
    expected = {}
    for name, cold in run(core, prompts).items():
        assert len(cold) == NUM_TOKENS
        answers = references(model, prompts[name], tokens_of(cold))
        expected[name] = next((answer for answer in answers if equals(cold, *answer)), None)
        assert expected[name] is not None, name
    outputs = run(core, prompts)
    for name, warm in outputs.items():
        assert equals(warm, *expected[name]), name
    assert outputs["100"][0].num_cached_tokens == 96, "the second round finds what the first left"


@pytest.mark.parametrize(
    "case", ["llama", "llama-rope-dynamic", "llama-rope-longrope", "mistral", "gemma3"]
)
def test_a_growing_conversation_equals_transformers(case: str, tmp_path: Path):
    """Each turn finds the last one's blocks, if the keys in them are those of its own length."""
    path = save_tiny(case, tmp_path)
    core, model = make_core(path, block_size=8), transformers_model(path)
    prompt = list(range(1, 11))
    for _ in range(4):  # past the original length of 64 within the second answer
        expected, _ = generate(model, prompt)
        [outputs] = run(core, {"turn": prompt}).values()
        assert tokens_of(outputs) == expected
        prompt = prompt + expected + [7, 8, 9]
    assert core.stats.num_cached_tokens > 0


@pytest.mark.parametrize(
    "case",
    [
        *["mistral", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma4-shared", "cohere2"],
        *["gpt-oss", "olmo3", "qwen2-window", "deepseek-v4"],
    ],
)
def test_windows_save_memory_and_change_no_output(case: str, tmp_path: Path):
    path = save_tiny(case, tmp_path)
    options = {"max_model_len": 200, "max_num_seqs": 2, "max_num_batched_tokens": 16}
    model = make_core(path, **options).model
    specs = [spec.in_pieces(4) for spec in model.kv_cache_specs()]

    def layout(specs: list[KVCacheSpec]) -> KVCacheLayout:
        return lay_out(specs, 200, block_size=4, max_chunk=16, dtype=torch.float32)

    def num_bytes(specs: list[KVCacheSpec]) -> int:
        return layout(specs).num_blocks_per_sequence * layout(specs).bytes_per_block

    # Just enough for one sequence, and too little if every layer kept all of it.
    assert num_bytes(specs) < num_bytes([spec._replace(window=None) for spec in specs])
    core = make_core(path, block_size=4, kv_cache_bytes=num_bytes(specs), **options)
    prompt = [(31 * i * i + 7 * i) % 199 for i in range(120)]
    model = build_tiny(case)
    expected = tokens_of(run(core, {"first": prompt})["first"])
    assert is_greedy(model, prompt, expected)

    # Its early blocks have been overwritten by its late ones; what comes next goes on from these.
    [*_, narrowest] = core.scheduler.block_manager._cached
    assert len(narrowest) < (len(prompt) + NUM_TOKENS) // 4
    longer = [*prompt, *expected, 7, 8, 9]
    outputs = run(core, {"longer": longer})["longer"]
    expected_of_longer = tokens_of(outputs)
    assert is_greedy(model, longer, expected_of_longer)
    assert outputs[0].num_cached_tokens == 148

    both = run(core, {"first": prompt, "longer": longer})
    assert tokens_of(both["first"]) == expected
    assert tokens_of(both["longer"]) == expected_of_longer


@pytest.mark.parametrize(("kv_cache_dtype", "most"), [("fp8", 0.2), ("int8", 0.04)])
@pytest.mark.parametrize("case", ["llama", "gemma4", "deepseek-v3"])
def test_keys_and_values_of_a_byte_a_number_take_less_memory(
    case: str, kv_cache_dtype: str, most: float, tmp_path: Path
):
    path = save_tiny(case, tmp_path)
    prompts = {"first": list(range(1, 60)), "other": list(range(50, 120))}
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0)
    logprobs = []
    bytes_per_block = []
    for kind in ("auto", kv_cache_dtype):
        core = make_core(path, kv_cache_dtype=kind, max_num_batched_tokens=16)
        bytes_per_block.append(core.info.kv_cache_bytes / core.info.num_blocks)
        outputs = run(core, prompts, params)
        entries = [x for o in outputs["other"] for x in o.prompt_logprobs or []]
        logprobs.append(torch.tensor([entry.logprob for entry in entries]))
        assert core.stats.num_blocks_used == 0
    assert 3 < bytes_per_block[0] / bytes_per_block[1] <= 4  # of float32
    assert 0 < (logprobs[0] - logprobs[1]).abs().mean() < most


@pytest.fixture(scope="module")
def path(tiny_model: Path) -> Path:
    return tiny_model


def test_preemption_does_not_change_the_output(path: Path):
    prompts = {str(i): [10 + i, 20, 30] for i in range(6)}
    roomy = make_core(path, max_num_seqs=6)
    bytes_per_block = roomy.info.kv_cache_bytes // roomy.info.num_blocks
    tight = make_core(path, max_num_seqs=6, max_model_len=64, kv_cache_bytes=6 * bytes_per_block)
    expected, found = run(roomy, prompts), run(tight, prompts)
    assert {n: tokens_of(o) for n, o in found.items()} == {
        n: tokens_of(o) for n, o in expected.items()
    }
    assert tight.stats.num_preemptions > 0
    assert tight.stats.num_blocks_used == 0


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(path: Path):
    params = SamplingParams(temperature=1.2, top_p=0.95, seed=7, max_tokens=24, ignore_eos=True)
    core = make_core(path, enable_prefix_caching=False)
    alone = tokens_of(run(core, {"mine": [1, 2, 3]}, params)["mine"])
    for i in range(5):
        other = SamplingParams(temperature=0.3 * i, max_tokens=10 + i, ignore_eos=True)
        core.add(AddRequest(f"other {i}", [4 + i] * (i + 1), other))
    assert tokens_of(run_with_others(core, "mine", [1, 2, 3], params)) == alone


def run_with_others(core, name, prompt, params) -> list[SequenceOutput]:
    assert core.add(AddRequest(name, prompt, params)) is None
    outputs = []
    while core.has_unfinished:
        outputs += [output for output in core.step() if output.request_id == name]
    return outputs


def test_an_exception_in_a_step_fails_only_that_step(path: Path, monkeypatch):
    core = make_core(path)
    launch = core.runner.launch

    def fail_once(scheduled, mask):
        monkeypatch.setattr(core.runner, "launch", launch)
        raise RuntimeError("secret detail")

    monkeypatch.setattr(core.runner, "launch", fail_once)
    [output] = run(core, {"a": [1, 2]})["a"]
    assert output.finish_reason is FinishReason.ERROR
    assert "secret" not in output.error
    assert len(tokens_of(run(core, {"b": [1, 2]})["b"])) == NUM_TOKENS
    core.scheduler.check_integrity()


class ShortOfMemory(torch.nn.Module):
    """A model for which the machine has memory up to a size of steps."""

    def __init__(self, model: torch.nn.Module, num_tokens: int, error: Exception) -> None:
        super().__init__()
        self.model, self.num_tokens, self.error = model, num_tokens, error

    def forward(self, input_ids: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        hidden_states = self.model(input_ids, context)  # some of its work is done
        if len(input_ids) > self.num_tokens:
            raise self.error
        return hidden_states

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_step_without_memory_is_computed_in_smaller_ones(path: Path, error: Exception):
    prompts = {str(i): [10 + i, 20, 30] * (i + 1) for i in range(6)}
    core = make_core(path, max_num_seqs=6)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, prompt_logprobs=1)
    expected = run(core, prompts, params)
    core.runner.model = ShortOfMemory(core.runner.model, 4, error)
    found = run(core, prompts, params)
    assert {n: tokens_of(o) for n, o in found.items()} == {
        n: tokens_of(o) for n, o in expected.items()
    }
    for name, prompt in prompts.items():
        scores = [x for output in found[name] for x in output.prompt_logprobs or []]
        assert len(scores) == len(prompt) - 1
    assert core.stats.num_out_of_memory > 0
    assert core.stats.num_blocks_used == 0


def test_log_probabilities_of_a_prompt_come_once_if_memory_runs_short_amid_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    core = make_core(path)
    monkeypatch.setattr(model_runner, "_MAX_LOGITS", 8 * core.info.vocab_size)
    num_calls = itertools.count(1)

    def fail_once(*_: object) -> None:
        if next(num_calls) == 3:
            raise torch.OutOfMemoryError

    core.model.lm_head.register_forward_hook(fail_once)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    outputs = run(core, {"a": list(range(3, 43))}, params)["a"]
    assert core.stats.num_out_of_memory == 1
    assert sum(len(output.prompt_logprobs or []) for output in outputs) == 39


def test_a_request_that_finds_no_memory_alone_is_told_so_and_others_are_answered(path: Path):
    core = make_core(path)
    model = core.runner.model
    core.runner.model = ShortOfMemory(model, 0, MemoryError())
    [output] = run(core, {"a": [1] * 40})["a"]
    assert output.finish_reason is FinishReason.ERROR
    assert "not enough memory" in output.error
    core.runner.model = model
    assert len(tokens_of(run(core, {"b": [1, 2]})["b"])) == NUM_TOKENS


def test_logits_that_are_not_numbers_fail_only_their_own_request(path: Path):
    core = make_core(path, max_model_len=64, block_size=16, kv_cache_bytes=6 * 16 * 512)
    assert core.info.num_blocks == 6
    whole_cache = {"again": [1] * 40, "too": [2] * 40}
    expected = {name: tokens_of(outputs) for name, outputs in run(core, whole_cache).items()}
    with torch.no_grad():
        core.model.model.embed_tokens.weight[99] = torch.nan
    core.model.lm_head.weight = torch.nn.Parameter(core.model.lm_head.weight.nan_to_num())
    outputs = run(core, {"bad": [1, 99], "good": [1, 2]})
    assert outputs["bad"][-1].finish_reason is FinishReason.ERROR
    assert len(tokens_of(outputs["good"])) == NUM_TOKENS
    found = {name: tokens_of(outputs) for name, outputs in run(core, whole_cache).items()}
    assert found == expected, "blocks that held NaN serve others"


@pytest.mark.parametrize("position", [3, 20, 69], ids=["first chunk", "later chunk", "last token"])
def test_what_is_not_a_number_serves_no_later_request(path: Path, position: int):
    core = make_core(path, max_num_batched_tokens=16, block_size=4)
    prompt = [5 + i % 50 for i in range(70)]
    prompt[position] = 99
    expected = tokens_of(run(core, {"good": [*prompt, 1]})["good"])
    core = make_core(path, max_num_batched_tokens=16, block_size=4)
    weight = core.model.model.embed_tokens.weight.data
    row = weight[99].clone()
    weight[99] = torch.nan
    head = core.model.lm_head.weight
    core.model.lm_head.weight = torch.nn.Parameter(head.nan_to_num())
    [output] = run(core, {"bad": prompt})["bad"]
    assert output.finish_reason is FinishReason.ERROR
    assert core.stats.num_steps == position // 16 + 1, "nothing is computed behind it"
    weight[99] = row
    core.model.lm_head.weight = head
    outputs = run(core, {"again": [*prompt, 1]})["again"]
    assert outputs[0].num_cached_tokens == 0
    assert tokens_of(outputs) == expected


@pytest.mark.parametrize("num_prompt_tokens", [63, 62])
def test_output_ends_where_the_context_does(path: Path, num_prompt_tokens: int):
    core = make_core(path, max_model_len=64)
    params = SamplingParams(temperature=0, ignore_eos=True)
    outputs = run(core, {"a": [5] * num_prompt_tokens}, params)["a"]
    assert len(tokens_of(outputs)) == 64 - num_prompt_tokens
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_an_end_of_sequence_token_ends_it_and_is_reported(path: Path):
    core = make_core(path)
    first = tokens_of(run(core, {"a": [1, 2]})["a"])
    stop = SamplingParams(temperature=0, stop_token_ids=(first[3],), ignore_eos=True)
    outputs = run(core, {"b": [1, 2]}, stop)["b"]
    end = first.index(first[3])
    assert tokens_of(outputs) == first[: end + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert outputs[-1].stop_token_id == first[3]


def test_requests_the_engine_cannot_take_are_refused_by_name(path: Path):
    core = make_core(path)
    vocab_size = core.info.vocab_size
    bias = SamplingParams(logit_bias={vocab_size: 1.0})
    allowed = SamplingParams(allowed_token_ids=(1, vocab_size))
    words = SamplingParams(bad_words_token_ids=((1,), (2, vocab_size)))
    for request, match in (
        (AddRequest("a", [], GREEDY), "prompt"),
        (AddRequest("b", [1] * 512, GREEDY), "512"),
        (AddRequest("c", [vocab_size], GREEDY), "vocabulary"),
        (AddRequest("d", [1], bias), "logit_bias"),
        (AddRequest("e", [1], allowed), "allowed_token_ids"),
        (AddRequest("f", [1], words), "bad_words_token_ids"),
    ):
        refusal = core.add(request)
        assert refusal is not None
        assert refusal.finish_reason is FinishReason.ERROR
        assert match in refusal.error
    assert not core.has_unfinished


def test_the_gauges_count(path: Path):
    core = make_core(path)
    run(core, {"a": list(range(1, 41)), "b": [7] * 10})
    stats = core.stats
    assert stats.num_prompt_tokens == 50
    assert stats.num_generated_tokens == 2 * NUM_TOKENS
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 7}, {"tight": True}], ids=str)
def test_prompt_logprobs_equal_transformers(path: Path, options: dict[str, Any], monkeypatch):
    monkeypatch.setattr(model_runner, "_MAX_LOGITS", 5 * 320)  # logits in pieces of a few rows
    if options.pop("tight", False):
        roomy = make_core(path)
        num_bytes = 7 * roomy.info.kv_cache_bytes // roomy.info.num_blocks
        options = {"kv_cache_bytes": num_bytes, "max_model_len": 64, "max_num_batched_tokens": 9}
    core = make_core(path, **options)
    generator = torch.Generator().manual_seed(3)
    prompts = {
        name: torch.randint(1, core.info.vocab_size, (40,), generator=generator).tolist()
        for name in "abc"
    }
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, prompt_logprobs=3)
    model = transformers_model(path)
    for _ in range(2):  # the second time the prefix cache has them all
        outputs = run(core, prompts, params)
        for name, prompt in prompts.items():
            with torch.inference_mode():
                expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
            found = [entry for o in outputs[name] for entry in o.prompt_logprobs or ()]
            assert len(found) == len(prompt) - 1
            for position, entry in enumerate(found):
                assert abs(entry.logprob - expected[position, prompt[position + 1]]) < 1e-4
                best = expected[position].topk(3)
                assert [token for token, _ in entry.top] == best.indices.tolist()
                above = expected[position] - expected[position, prompt[position + 1]]
                assert (above > 1e-4).sum() < entry.rank <= (above > -1e-4).sum()
            before_tokens = [o for o in outputs[name] if o.prompt_logprobs]
            assert outputs[name].index(before_tokens[-1]) <= next(
                i for i, o in enumerate(outputs[name]) if o.token_ids
            )
    assert (core.stats.num_preemptions > 0) == ("kv_cache_bytes" in options)


def test_a_prompt_that_fills_the_context_can_be_scored(path: Path):
    core = make_core(path, max_model_len=64)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    outputs = run(core, {"a": [5] * 64}, params)["a"]
    assert tokens_of(outputs) == []
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert sum(len(o.prompt_logprobs or ()) for o in outputs) == 63
    assert core.add(AddRequest("b", [5] * 64, GREEDY)) is not None


def test_choices_of_one_prompt_compute_it_once(path: Path):
    core = make_core(path)
    prompt = list(range(1, 101))
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    outputs = run(core, {str(i): prompt for i in range(5)}, params)
    assert len({tuple(tokens_of(o)) for o in outputs.values()}) == 1
    assert [outputs[str(i)][0].num_cached_tokens for i in range(5)] == [0, 96, 96, 96, 96]
