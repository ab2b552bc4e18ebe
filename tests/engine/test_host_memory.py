"""What the device gives up is found in host memory, and tokens are those of a roomy cache."""

from __future__ import annotations

import logging
import random
from math import gcd
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from axion.engine import host_memory, kv_cache
from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.host_memory import HostMemory, rows_of
from axion.engine.host_pool import HostPool
from axion.engine.messages import AddRequest
from axion.errors import ModelLoadError
from axion.types import EngineConfig, SamplingParams
from tests.parity.checkpoints import save_tiny

BLOCK_SIZE = 4
MAX_MODEL_LEN = 48


def make_core(path: Path, **options) -> EngineCore:
    config = EngineConfig(
        model_path=str(path),
        device="cpu",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=12,
        block_size=BLOCK_SIZE,
        **{"kv_cache_bytes": 2**24, "max_num_seqs": 4, **options},
    )
    return load_engine(config)


def make_tight_core(path: Path, *, host_share: float, **options) -> EngineCore:
    """With little more than what one long sequence needs, or with slots for a few states, and host
    memory of so many times that size."""
    roomy = make_core(path, **options)
    bytes_per_slot = sum(
        tensor[0].numel() * tensor.element_size()
        for state in roomy.runner.states
        for tensor in state.values()
    )
    if roomy.scheduler.block_manager.states is None:
        num_blocks = roomy.scheduler.block_manager.max_blocks_held(MAX_MODEL_LEN) + 1
        num_bytes = num_blocks * roomy.info.kv_cache_bytes // roomy.info.num_blocks
    else:
        num_bytes = 12 * bytes_per_slot  # of which half is for slots
    return make_core(
        path, kv_cache_bytes=num_bytes, kv_offload_bytes=int(host_share * num_bytes), **options
    )


class Turn(NamedTuple):
    step: int
    request: AddRequest
    aborted_at: int | None


def turns(seed: int, vocab_size: int) -> list[Turn]:
    """Requests that begin alike and come again, some under another salt, some given up."""
    rng = random.Random(seed)
    texts = [[rng.randrange(1, vocab_size) for _ in range(30)] for _ in range(3)]
    result = []
    for i in range(14):
        text = rng.choice(texts)
        prompt = text[: rng.randrange(6, 31)]
        params = SamplingParams(temperature=0, max_tokens=rng.choice([2, 8, 14]), ignore_eos=True)
        step = rng.randrange(40)
        aborted_at = step + rng.randrange(1, 8) if rng.random() < 0.15 else None
        salt = rng.choice(["", "", "", "other"])
        result.append(Turn(step, AddRequest(str(i), prompt, params, cache_salt=salt), aborted_at))
    return result


def run(core: EngineCore, requests: list[Turn]) -> dict[str, list[int]]:
    """The tokens of all requests that nobody gave up."""
    tokens: dict[str, list[int]] = {turn.request.request_id: [] for turn in requests}
    last, step = max(turn.step for turn in requests), 0
    while core.has_unfinished or step <= last:
        for turn in requests:
            if turn.step == step:
                assert core.add(turn.request) is None
            if turn.aborted_at == step:
                core.abort([turn.request.request_id])
        for output in core.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
        core.scheduler.check_integrity()
        step += 1
    assert core.stats.num_blocks_used == 0
    return {
        t.request.request_id: tokens[t.request.request_id] for t in requests if not t.aborted_at
    }


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = "gemma3", "falcon-h1", "mamba"
    return {"llama": tiny_model} | {
        name: save_tiny(name, tmp_path_factory.mktemp(name)) for name in names
    }


@pytest.mark.parametrize(
    ("model", "host_share", "options"),
    [
        ("llama", 0.4, {"async_scheduling": True}),
        ("llama", 8, {"kv_cache_dtype": "int8", "speculative": "ngram"}),
        ("gemma3", 0.4, {}),
        ("gemma3", 8, {"async_scheduling": True}),
        ("falcon-h1", 4, {"max_num_seqs": 2}),
        ("mamba", 4, {"max_num_seqs": 2}),
    ],
    ids=str,
)
def test_the_tokens_are_those_of_a_roomy_cache(
    model: str, host_share: float, options: dict[str, object], models: dict[str, Path]
):
    roomy = make_core(models[model], **options)
    tight = make_tight_core(models[model], host_share=host_share, **options)
    requests = turns(1, roomy.info.vocab_size)
    assert run(tight, requests) == run(roomy, requests)
    assert tight.stats.num_preemptions or model != "llama"
    states = tight.scheduler.block_manager.states
    assert states.host.num_loaded if states else tight.stats.num_blocks_restored


@pytest.mark.parametrize("num_staged", [1, 3])
@pytest.mark.parametrize("widths", [(24, 7), (24, 10), (20, 12), (24, 8), (32, 16)], ids=str)
def test_what_is_saved_comes_back_wherever_it_goes(
    widths: tuple[int, int], num_staged: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(host_memory, "STAGING_BYTES", num_staged * sum(widths))
    monkeypatch.setattr(host_memory, "_CHUNK_BYTES", 3 * sum(widths))  # places lie in two
    # All bits that there are, NaNs too; those of rows that stay are no numbers either.
    generator = torch.Generator().manual_seed(0)
    wide, narrow = (
        torch.randint(256, (8, width), dtype=torch.uint8, generator=generator) | 0xC0
        for width in widths
    )
    expected = wide.clone(), narrow.clone()
    pool = HostPool(5)
    parts = rows_of([wide.view(torch.bfloat16).view(8, 2, -1), narrow, wide[:, :1]])
    assert parts[0].element_size() == gcd(16, *widths)
    memory = HostMemory(pool, parts, torch.device("cpu"))
    for row in range(5):
        pool.save(row, row, [])
    memory.move()
    wide[:5], narrow[:5] = 255, 255
    pool.promise(range(5))
    for row in range(5):
        pool.load(row, 7 - row)
    memory.move()
    for tensor, before in zip((wide, narrow), expected, strict=True):
        assert torch.equal(tensor[3:].flip(0), before[:5])
        assert (tensor[:3] == 255).all()


def test_the_pool_is_bounded_and_the_least_recently_used_gives_way():
    pool = HostPool(2)
    for row, key in enumerate("abac"):
        pool.save(key, row, [row])
        pool.check_integrity()
    assert [key for key in "abc" if key in pool] == ["a", "c"]
    assert pool.token_ids("a") == [0], "it was here, and was not copied again"
    assert sorted(pool.saves.values()) == [0, 3]
    assert pool.num_saved == 3


def test_nothing_is_saved_over_what_is_to_be_loaded():
    pool = HostPool(1)
    pool.save("a", 0)
    pool.moved()
    pool.promise("a")
    pool.save("b", 1)
    assert "b" not in pool
    pool.load("a", 1)
    pool.discard("a")
    pool.save("b", 2)
    assert "a" not in pool
    assert "b" not in pool
    assert not pool.saves
    pool.check_integrity()
    pool.moved()
    pool.save("b", 2)
    assert "b" in pool
    pool.check_integrity()


def test_a_failed_copy_is_made_again(monkeypatch: pytest.MonkeyPatch):
    rows = torch.arange(4.0)[:, None].clone()
    pool = HostPool(2)
    memory = HostMemory(pool, rows_of([rows]), torch.device("cpu"))
    pool.save("a", 0)
    memory.move()
    pool.save("b", 1)
    pool.promise("a")
    pool.load("a", 1)
    move = torch.Tensor.index_copy_
    monkeypatch.setattr(torch.Tensor, "index_copy_", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memory.move()
    monkeypatch.setattr(torch.Tensor, "index_copy_", move)
    memory.move()
    pool.promise("b")
    pool.load("b", 3)
    memory.move()
    assert rows.flatten().tolist() == [0, 0, 2, 1]


def test_on_a_cpu_the_log_says_that_it_is_the_same_memory(tiny_model: Path, caplog):
    with caplog.at_level(logging.WARNING, logger="axion.engine"):
        core = make_core(tiny_model, kv_offload_bytes=2**22)
    [warning] = caplog.messages
    assert "KV_OFFLOAD_GIB brings nothing on a CPU" in warning
    per_block = core.info.kv_cache_bytes // core.info.num_blocks
    assert core.stats.num_host_blocks == 2**22 // per_block


def test_host_memory_that_is_not_there_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kv_cache, "free_memory", lambda device: 2**30)
    with pytest.raises(ModelLoadError, match=r"2.00 GiB.*KV_OFFLOAD_GIB.*1.00 GiB are free"):
        make_core(tiny_model, kv_offload_bytes=2**31)
    # On a CPU both take from one.
    with pytest.raises(ModelLoadError, match="KV_CACHE_GIB"):
        make_core(tiny_model, kv_offload_bytes=2**29, kv_cache_bytes=2**29 + 1)


def test_a_preempted_sequence_gets_back_what_it_had(tiny_model: Path):
    core = make_tight_core(tiny_model, host_share=4, max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    for name in tokens:
        core.add(AddRequest(name, [ord(name)] * 20, params))
    num_computed = 0
    launch = core.runner.launch

    def counting(scheduled, mask):
        nonlocal num_computed
        num_computed += sum(entry.num_scheduled_tokens for entry in scheduled)
        return launch(scheduled, mask)

    core.runner.launch = counting
    while core.has_unfinished:
        for output in core.step():
            tokens[output.request_id] += output.token_ids
    assert core.stats.num_preemptions == 1
    assert core.stats.num_blocks_restored > 0
    # But for the last of its blocks, which was not full, nothing is computed twice.
    assert num_computed < 2 * 39 + BLOCK_SIZE
