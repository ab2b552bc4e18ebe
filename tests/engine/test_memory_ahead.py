"""Memory of the KV cache is brought in before it is used, and nothing that is in it changes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from axion.engine.block_manager import BlockManager
from axion.engine.memory_ahead import MemoryAhead
from axion.engine.messages import AddRequest
from axion.engine.sequence import Sequence
from axion.layers.context import KVCache
from axion.types import SamplingParams
from tests.engine.test_core import make_core, run, tokens_of

BLOCK_SIZE, NUM_BLOCKS = 4, 40


def caches() -> list[KVCache]:
    """One with keys and values, and two layers of other groups whose values are in their keys."""
    k, v, shared = (torch.ones(NUM_BLOCKS, BLOCK_SIZE, 1, 2) for _ in range(3))
    in_keys = KVCache(shared, shared[..., :1])
    return [KVCache(k, v), in_keys, in_keys._replace(group=1)]


def written(kv_caches: list[KVCache]) -> list[int]:
    """Blocks that are zero, which they are in all tensors or in none."""

    def zeros(x: Tensor) -> Tensor:
        return (x == 0).flatten(1).all(1)

    everywhere = zeros(kv_caches[0].k)
    for cache in kv_caches:
        assert torch.equal(zeros(cache.k), everywhere)
        assert torch.equal(zeros(cache.v), everywhere)
    return everywhere.nonzero().flatten().tolist()


def use(manager: BlockManager, num_blocks: int) -> Sequence:
    sequence = Sequence(
        "a", list(range(num_blocks * BLOCK_SIZE)), SamplingParams(), seed=0, eos_token_ids=()
    )
    assert manager.admit(sequence)
    return sequence


def test_what_a_step_may_use_is_there() -> None:
    kv_caches, manager = caches(), BlockManager(NUM_BLOCKS, BLOCK_SIZE)
    ahead = MemoryAhead(kv_caches, manager, 30)
    while ahead.bring_piece():
        pass
    assert written(kv_caches) == list(range(8))
    use(manager, 2)
    assert not ahead.bring_piece()  # which are too few
    use(manager, 1)
    while ahead.bring_piece():
        pass
    assert written(kv_caches) == list(range(11))
    assert not ahead.bring_piece()


def test_it_ends_with_the_cache() -> None:
    kv_caches, manager = caches(), BlockManager(NUM_BLOCKS, BLOCK_SIZE)
    ahead = MemoryAhead(kv_caches, manager, 1000)
    while ahead.bring_piece():
        pass
    assert written(kv_caches) == list(range(NUM_BLOCKS))
    use(manager, NUM_BLOCKS)
    assert not ahead.bring_piece()


def test_blocks_that_are_taken_meanwhile_keep_what_they_hold() -> None:
    kv_caches, manager = caches(), BlockManager(NUM_BLOCKS, BLOCK_SIZE)
    ahead = MemoryAhead(kv_caches, manager, 40)
    assert ahead.bring_piece()
    assert ahead.bring_piece()
    sequence = use(manager, 5)
    for cache in kv_caches:
        cache.k[:5] = cache.v[:5] = 1
    while ahead.bring_piece():
        pass
    assert written(kv_caches) == list(range(5, 15))
    manager.free(sequence)  # which are used again first
    use(manager, 10)
    assert manager.num_ever_used == 10
    while ahead.bring_piece():
        pass
    assert written(kv_caches) == list(range(5, 20))


def test_an_engine_that_idles_forgets_nothing(tiny_model: Path) -> None:
    core = make_core(tiny_model)
    prompt = list(range(5, 60))
    first = run(core, {"a": prompt})["a"]
    assert core.use_idle_time()
    core.add(AddRequest("b", prompt, SamplingParams()))
    assert not core.use_idle_time()
    core.abort(["b"])
    while core.use_idle_time():
        pass
    assert tokens_of(run(core, {"c": prompt})["c"]) == tokens_of(first)
    assert core.scheduler.num_cached_tokens > 0
