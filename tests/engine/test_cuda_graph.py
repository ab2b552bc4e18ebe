"""Replayed decode steps against eager ones; on CPU, with graphs that are recorded operations."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from axion.engine import cuda_graph, kv_cache
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.cuda_graph import CudaGraphRunner, batch_sizes
from axion.engine.messages import AddRequest
from axion.layers.context import ForwardContext
from axion.models.base import MLP
from axion.types import EngineConfig, SamplingParams
from tests.engine.recorded_graph import RecordedGraph
from tests.parity.checkpoints import save_tiny

MAX_NUM_SEQS = 10
BLOCK_SIZE = 8


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU on which graphs can be captured."""
    monkeypatch.setattr(cuda_graph, "has_graphs", lambda device: True)
    monkeypatch.setattr(cuda_graph, "graph_pool", lambda: RecordedGraph)


def make_core(path: Path, **options) -> EngineCore:
    return load_engine(
        EngineConfig(
            model_path=str(path),
            device="cpu",
            dtype="float32",
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=40,
            block_size=BLOCK_SIZE,
            **{"kv_cache_bytes": 2**21, "max_model_len": 128, **options},
        )
    )


Answers = dict[str, list[tuple[int, float]]]


def answers(core: EngineCore, num_requests: int = MAX_NUM_SEQS + 2) -> Answers:
    """Tokens and log probabilities of sequences that come, decode in batches of all sizes, and
    go."""
    found: Answers = {}
    for i in range(num_requests):
        params = SamplingParams(temperature=0, max_tokens=3 * (i + 1), ignore_eos=True, logprobs=0)
        prompt = [(31 * i + 7 * j) % 90 + 1 for j in range(1 + 4 * i)]
        assert core.add(AddRequest(str(i), prompt, params)) is None
    while core.has_unfinished:
        for output in core.step():
            assert output.error is None
            entries = zip(output.token_ids, output.logprobs or [], strict=True)
            found.setdefault(output.request_id, []).extend(
                (token_id, entry.logprob) for token_id, entry in entries
            )
    return found


def check_answers(replayed: Answers, eager: Answers) -> None:
    assert replayed.keys() == eager.keys()
    for name, entries in eager.items():
        assert [token for token, _ in replayed[name]] == [token for token, _ in entries], name
        found, expected = ([logprob for _, logprob in e] for e in (replayed[name], entries))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "case", ["llama", "llama-rope-dynamic", "gemma3", "mixtral", "deepseek-v3"]
)
def test_replayed_steps_equal_eager_ones(
    case: str, graphs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save_tiny(case, tmp_path)
    eager = answers(make_core(path, cuda_graphs=False))
    core = make_core(path, async_scheduling=True)  # as on CUDA
    sizes = []
    assert core.runner.graphs is not None
    replay = RecordedGraph.replay
    by_graph = {id(graph): size for size, graph in core.runner.graphs._graphs.items()}
    monkeypatch.setattr(
        RecordedGraph, "replay", lambda graph: (sizes.append(by_graph[id(graph)]), replay(graph))
    )
    replayed = answers(core)
    assert set(sizes) == set(batch_sizes(MAX_NUM_SEQS)), "batches of every size were replayed"
    check_answers(replayed, eager)
    assert core.stats.num_blocks_used == 0


def test_a_draft_model_is_replayed_too(
    graphs: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    eager = answers(make_core(tiny_model, cuda_graphs=False))
    pools = []
    monkeypatch.setattr(cuda_graph, "graph_pool", lambda: pools.append(None) or RecordedGraph)
    with caplog.at_level(logging.INFO, logger="axion.engine"):
        core = make_core(tiny_model, draft_model_path=str(tiny_model))
    assert len(pools) == 1, "both models' graphs have their memory in one pool"
    captured = [line for line in caplog.messages if line.startswith("captured ")]
    assert [line.split(" in ")[0] for line in captured] == [
        f"captured {len(batch_sizes(MAX_NUM_SEQS))} CUDA graphs of LlamaForCausalLM"
    ] * 2
    draft = core.proposer._runner
    computed = []
    forward = draft.model.forward
    monkeypatch.setattr(
        draft.model,
        "forward",
        lambda ids, context: computed.append(context.query_lens) or forward(ids, context),
    )
    check_answers(answers(core), eager)
    assert core.stats.num_draft_tokens > 0
    # All drafts come true, so that the last one of each step is caught up with in the next.
    assert computed
    assert all(max(lens) > 2 for lens in computed), "what decodes is replayed"


def test_padding_touches_no_block_of_a_sequence(graphs: None, tiny_model: Path):
    core = make_core(tiny_model)
    runner = core.runner.graphs
    caches = runner.kv_caches
    assert all(len(cache.k) == core.info.num_blocks + 1 for cache in caches)

    def step(num_seqs: int) -> torch.Tensor:
        """One token each at position 3 of a block of its own; what the model computes."""
        positions = torch.full((num_seqs,), 3)
        blocks = torch.arange(num_seqs)
        context = ForwardContext(
            positions=positions,
            rope_lengths=positions + 1,
            slot_mapping=(blocks * BLOCK_SIZE + 3)[None],
            block_tables=blocks[None, :, None],
            context_lens=positions + 1,
            query_lens=[1] * num_seqs,
            context_lens_list=[4] * num_seqs,
            kv_caches=caches,
            block_size=BLOCK_SIZE,
        )
        assert runner.fits(context)
        return runner(torch.arange(num_seqs) + 5, context).clone()

    for cache in caches:
        cache.k.normal_()
        cache.v.normal_()
    full = step(8)
    before = [torch.stack((cache.k, cache.v)).clone() for cache in caches]
    for cache in caches:
        cache.k[5:], cache.v[5:] = float("nan"), float("nan")  # nobody's, or the scratch block
    torch.testing.assert_close(step(5), full[:5])
    for cache, old in zip(caches, before, strict=True):
        torch.testing.assert_close(torch.stack((cache.k, cache.v))[:, :5], old[:, :5])
        assert cache.k[5:-1].isnan().all(), "an earlier step's rows are not written again"


def test_prompts_and_large_batches_are_not_replayed(graphs: None, tiny_model: Path):
    core = make_core(tiny_model)
    lens = {"prompt": [4], "mixed": [1, 3, 1], "large": [1] * (MAX_NUM_SEQS + 1)}
    for query_lens in lens.values():
        context = ForwardContext(*[torch.empty(0)] * 5, query_lens, query_lens, [], BLOCK_SIZE)
        assert not core.runner.graphs.fits(context)


def test_the_setting_turns_graphs_off(graphs: None, tiny_model: Path):
    assert make_core(tiny_model, cuda_graphs=False).runner.graphs is None


def test_models_that_choose_what_they_attend_to_are_not_captured_beyond_that(
    graphs: None, tmp_path: Path, caplog
):
    path = save_tiny("deepseek-v32", tmp_path)  # chooses 12 tokens
    short = make_core(path, max_model_len=12)
    assert short.runner.graphs is not None, "all tokens are chosen"
    eager = make_core(path, max_model_len=12, cuda_graphs=False)
    check_answers(answers(short, num_requests=3), answers(eager, num_requests=3))
    with caplog.at_level(logging.WARNING, logger="axion.engine"):
        assert make_core(path, max_model_len=13).runner.graphs is None
    assert not caplog.messages, "nothing was tried"


def test_models_with_states_are_not_captured(graphs: None, tmp_path: Path):
    assert make_core(save_tiny("mamba", tmp_path)).runner.graphs is None


def test_a_model_that_cannot_be_captured_runs_eagerly_with_one_warning(
    graphs: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    expected = answers(make_core(tiny_model, cuda_graphs=False))
    forward = MLP.forward

    def reads_a_value(self, hidden_states):
        hidden_states.nonzero()
        return forward(self, hidden_states)

    monkeypatch.setattr(MLP, "forward", reads_a_value)
    with caplog.at_level(logging.WARNING, logger="axion.engine"):
        core = make_core(tiny_model)
    [warning] = caplog.messages
    assert "aten.nonzero.default reads a value on the host" in warning
    assert core.runner.graphs is None
    assert answers(core) == expected


def test_the_memory_of_all_graphs_is_foretold_from_the_two_largest(
    graphs: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    model = make_core(tiny_model).model
    core = make_core(tiny_model)
    free = iter([10_000, 9_000, 8_900, 8_890])
    monkeypatch.setattr(cuda_graph, "_free_bytes", lambda device: next(free))
    runner = CudaGraphRunner(
        model,
        core.runner.kv_caches,
        block_size=BLOCK_SIZE,
        num_groups=1,
        max_num_seqs=MAX_NUM_SEQS,
        max_model_len=128,
        device=core.runner.device,
    )
    assert runner.measure() == 1_000 + 10 * (len(batch_sizes(MAX_NUM_SEQS)) - 1)


@pytest.mark.parametrize("num_models", [1, 2])
def test_graphs_take_their_memory_from_the_kv_cache(
    num_models: int, tiny_model: Path, graphs: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kv_cache, "free_memory", lambda device: 2**20)
    monkeypatch.setattr(CudaGraphRunner, "measure", lambda self: 2**19 // num_models)
    options = {"kv_cache_bytes": None, "memory_fraction": 1.0}
    if num_models == 2:
        options["draft_model_path"] = str(tiny_model)
    with_graphs = make_core(tiny_model, **options)
    without = make_core(tiny_model, cuda_graphs=False, **options)
    assert with_graphs.info.num_blocks == without.info.num_blocks // 2


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 20]),
        (300, [1, 2, 4, *range(8, 256, 8), 256, 288, 300]),
    ],
)
def test_batch_sizes(max_num_seqs: int, sizes: list[int]):
    assert batch_sizes(max_num_seqs) == sizes
