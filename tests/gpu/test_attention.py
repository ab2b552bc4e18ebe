"""Paged attention's kernels against its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from axion.layers.attention import reference
from tests.gpu.batches import Batch, make_batch

kernels = pytest.importorskip("axion.layers.kernels.attention")
# numpy says so, and the interpreter goes on with infinity, as the hardware does.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

# A sequence that decodes, a chunk with tokens before it, and one that is a whole prompt.
LENGTHS = [(1, 21), (9, 10), (3, 0)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come in several loads, and queries in several tiles, in small problems too."""
    monkeypatch.setattr(kernels, "_LOAD_BYTES", 1)
    monkeypatch.setattr(kernels, "_MAX_ROWS", 16)


def split(monkeypatch: pytest.MonkeyPatch, num_splits: int) -> None:
    monkeypatch.setattr(kernels, "_num_splits", lambda *_: num_splits)
    monkeypatch.setattr(kernels, "_MIN_SPLIT", 1)


def check(batch: Batch, *, tolerance: float = 1e-4, **options: Any) -> None:
    actual = batch.run(kernels.paged_attention, **options)
    expected = batch.run(reference.paged_attention, **options)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert not actual[0].isnan().any()


HEADS: list[dict[str, Any]] = [
    {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16},
    {"num_heads": 3, "num_kv_heads": 3, "head_dim": 8, "v_head_dim": 6},
    {"num_heads": 5, "num_kv_heads": 1, "head_dim": 24, "block_size": 3},
    {"num_heads": 20, "num_kv_heads": 1, "head_dim": 32},
    {"num_heads": 20, "num_kv_heads": 1, "head_dim": 40, "v_head_dim": 32, "values_in_keys": True},
    {"num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "v_head_dim": 20, "values_in_keys": True},
]


@pytest.mark.parametrize("heads", range(len(HEADS)))
def test_heads_of_all_shapes(heads: int, device: torch.device) -> None:
    check(make_batch(LENGTHS, device=device, **HEADS[heads]))


OPTIONS: list[dict[str, Any]] = [
    {"window": 1},
    {"window": 13},
    {"softcap": 0.7},
    {"sinks": True},
    {"chunk": 7},
    {"window": 13, "softcap": 0.7, "sinks": True, "alibi_slopes": True},
]


@pytest.mark.parametrize(
    ("options", "num_splits"), [(0, 2), (1, 1), (1, 2), (2, 1), (3, 2), (4, 2), (5, 1), (5, 2)]
)
def test_options(
    options: int, num_splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(monkeypatch, num_splits)
    of_heads = torch.linspace(-2, 2, 4, device=device)
    given = {
        name: of_heads if option is True else option for name, option in OPTIONS[options].items()
    }
    check(make_batch(LENGTHS, device=device), **given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, device: torch.device) -> None:
    check(make_batch(LENGTHS[:2], device=device, dtype=dtype), tolerance=0.02)


def test_more_parts_than_keys(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    split(monkeypatch, 8)
    check(make_batch([(1, 40), (1, 0)], device=device, max_blocks=40))


@pytest.mark.parametrize("num_splits", [1, 2])
def test_a_row_that_fills_up_a_batch(
    num_splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its context has one token, and its position is one of an earlier step."""
    split(monkeypatch, num_splits)
    batch = make_batch([(1, 20), (1, 30)], device=device)
    expected, _, _ = batch.run(reference.paged_attention, window=8)
    batch.context.context_lens[1] = 1
    out, _, _ = batch.run(kernels.paged_attention, window=8)
    torch.testing.assert_close(out[0], expected[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(out[1], torch.zeros_like(out[1]))


def test_latent_attention_in_parts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    split(monkeypatch, 2)
    check(make_batch(LENGTHS[:2], device=device, **HEADS[5]))


def test_keys_before_the_window_are_not_read(device: torch.device) -> None:
    batch = make_batch([(1, 30), (4, 20)], device=device)
    k, v = (x.view(-1, *x.shape[2:]) for x in (batch.cache.k, batch.cache.v))
    for seq, (query_len, cached) in enumerate([(1, 30), (4, 20)]):
        hidden = torch.arange(cached + 1 - 8, device=device)
        blocks = batch.context.block_tables[1, seq, hidden // 4]
        k[blocks * 4 + hidden % 4] = v[blocks * 4 + hidden % 4] = torch.nan
        assert query_len <= kernels._MAX_ROWS // 2  # one tile
    check(batch, window=8)


def test_what_has_no_slot_is_not_stored(device: torch.device) -> None:
    batch = make_batch([(2, 0), (1, 4)], device=device)
    batch.context.slot_mapping[1, 1:] = -1
    kernels.store(batch.k, batch.v, batch.cache, batch.context.slot_mapping[1])
    slots = batch.cache.k.view(-1, *batch.cache.k.shape[2:])
    assert torch.equal(slots[batch.context.slot_mapping[1, 0]], batch.k[0])
    assert slots.isfinite().all((1, 2)).sum() == 4 + 1


def test_keys_that_another_layer_has_stored(device: torch.device) -> None:
    batch = make_batch(LENGTHS, device=device)
    kernels.store(batch.k, batch.v, batch.cache, batch.context.slot_mapping[1])
    batch.k = batch.v = None
    check(batch)


@pytest.mark.parametrize("sick", [0, 2])
def test_a_nan_stays_in_its_own_sequence(sick: int, device: torch.device) -> None:
    batch = make_batch([(1, 2), (1, 30), (4, 9)], device=device)
    rows = [slice(0, 1), slice(1, 2), slice(2, 6)]
    batch.k[rows[sick]] = batch.v[rows[sick]] = torch.nan
    out, _, _ = batch.run(kernels.paged_attention)
    assert [bool(out[row].isnan().any()) for row in rows] == [seq == sick for seq in range(3)]
