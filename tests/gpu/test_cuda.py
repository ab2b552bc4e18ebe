"""What only a device shows: real sizes, and that nothing waits for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from axion.layers.attention import reference
from axion.layers.attention.options import AttentionOptions
from axion.layers.kv_format import KV_FORMATS, KVEntries
from tests.gpu.batches import make_batch
from tests.gpu.conftest import IS_INTERPRETED

kernels = pytest.importorskip("axion.layers.kernels.attention")
pytestmark = pytest.mark.skipif(IS_INTERPRETED, reason="a device is needed")

SHAPES: list[dict[str, Any]] = [
    {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128},
    {"num_heads": 7, "num_kv_heads": 1, "head_dim": 96},
    {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256},
    {
        "num_heads": 128,
        "num_kv_heads": 1,
        "head_dim": 576,
        "v_head_dim": 512,
        "values_in_keys": True,
    },
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", range(len(SHAPES)))
@pytest.mark.parametrize("window", [None, 300])
def test_real_sizes(
    shape: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    lengths = [(1, 3000), (130, 700), (1, 10), (257, 0)]
    batch = make_batch(lengths, device=device, dtype=dtype, block_size=16, **SHAPES[shape])
    scale = SHAPES[shape]["head_dim"] ** -0.5
    out, _, _ = batch.run(kernels.paged_attention, scale=scale, window=window)
    expected, _, _ = batch.run(reference.paged_attention, scale=scale, window=window)
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


def test_a_graph_is_replayed_for_other_lengths(device: torch.device) -> None:
    # All of one cache: in the first step the sequences are long, in the second others are.
    options: dict[str, Any] = {"device": device, "dtype": torch.bfloat16, "max_blocks": 4096}
    captured = make_batch([(1, 900), (1, 17), (1, 0)], **options)
    kernels.paged_attention(
        *captured.inputs, AttentionOptions(0.3)
    )  # compiled before it is captured
    captured.context._derived.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kernels.paged_attention(*captured.inputs, AttentionOptions(0.3))
    for lengths in [(1, 900), (1, 17), (1, 0)], [(1, 5), (1, 100), (1, 500)]:
        step = make_batch(lengths, **options)
        num_blocks = len(step.cache.k)
        captured.q.copy_(step.q)
        captured.k.copy_(step.k)
        captured.v.copy_(step.v)
        captured.cache.k[:num_blocks].copy_(step.cache.k)
        captured.cache.v[:num_blocks].copy_(step.cache.v)
        captured.context.positions.copy_(step.context.positions)
        captured.context.context_lens.copy_(step.context.context_lens)
        captured.context.slot_mapping.copy_(step.context.slot_mapping)
        captured.context.block_tables.copy_(step.context.block_tables)
        graph.replay()
        expected = reference.paged_attention(*step.inputs, AttentionOptions(0.3))
        torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)


def test_nothing_waits_for_the_device(device: torch.device) -> None:
    batch = make_batch([(1, 900), (40, 17), (1, 0)], device=device, dtype=torch.bfloat16)
    kernels.paged_attention(*batch.inputs, AttentionOptions(0.3))
    batch.context._derived.clear()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.paged_attention(*batch.inputs, AttentionOptions(0.3))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", KV_FORMATS)
def test_keys_and_values_in_bytes_are_those_of_the_cpu(device: torch.device, name: str):
    kv_format = KV_FORMATS[name](torch.bfloat16)
    x = torch.randn(8, 2, 64).bfloat16()
    slots = torch.tensor([5, 0, 9, 3, 12, 1, 8, 15])
    loaded = []
    for where in (torch.device("cpu"), device):
        stored = torch.zeros(16, 2, kv_format.width(64), dtype=torch.uint8, device=where)
        entries = KVEntries(stored, kv_format)
        entries.store(slots.to(where), x.to(where))
        loaded.append(entries.gather(slots[None].to(where)).cpu())
    assert loaded[0].shape == (1, 8, 2, 64)
    torch.testing.assert_close(loaded[1], loaded[0])
