"""How much memory the cache may take, and what is said when it is too little."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axion.engine import kv_cache
from axion.engine.kv_cache import (
    KVCacheLayout,
    allocate,
    num_blocks_that_fit,
)
from axion.errors import ModelLoadError
from axion.layers.context import KVCacheSpec


def test_a_cache_that_is_to_be_larger_than_the_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr(kv_cache, "free_memory", lambda device: 6 * 2**30)
    cpu = torch.device("cpu")
    assert kv_cache.budget(cpu, None, 0.5) == 3 * 2**30
    assert kv_cache.budget(cpu, 6 * 2**30, 0.5) == 6 * 2**30
    with pytest.raises(ModelLoadError, match=r"1000\.00 GiB .*6\.00 GiB of cpu memory are free"):
        kv_cache.budget(cpu, 1000 * 2**30, 0.5)


def specs_of(windows: list[int | None], head_dim: int = 4) -> list[KVCacheSpec]:
    return [KVCacheSpec(2, head_dim, head_dim, window=window) for window in windows]


def lay_out(specs: list[KVCacheSpec], max_model_len: int, **options: Any) -> KVCacheLayout:
    options = {"block_size": 16, "max_chunk": 2048, "dtype": torch.bfloat16, **options}
    return kv_cache.lay_out(specs, max_model_len, **options)


def bytes_per_sequence(specs: list[KVCacheSpec], max_model_len: int) -> int:
    layout = lay_out(specs, max_model_len)
    return layout.num_blocks_per_sequence * layout.bytes_per_block


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        pytest.param([None] * 3, [(None, 3)], id="llama"),
        pytest.param([4096] * 3, [(4096, 3)], id="mistral"),
        pytest.param([4096, None] * 13, [(None, 13), (4096, 13)], id="gemma2"),
        pytest.param(
            [*[512] * 5, None] * 4 + [512] * 2, [(None, 4), *[(512, 4)] * 5, (512, 2)], id="gemma3"
        ),
        pytest.param([*[1024] * 5, None] * 8, [(None, 8), *[(1024, 8)] * 5], id="gemma3-12b"),
        pytest.param([*[32768] * 3, None], [(None, 4)], id="window-of-the-models-length"),
        pytest.param(
            [None] * 15 + [512] * 4,
            [*[(None, 5)] * 3, (512, 4)],
            id="few",
        ),
        pytest.param([None] * 7 + [512] * 3, [*[(None, 1)] * 7, *[(512, 1)] * 3], id="no-fit"),
        pytest.param(
            [512, 1024, None, 256], [(None, 1), (1024, 1), (512, 1), (256, 1)], id="many-windows"
        ),
    ],
)
def test_layers_are_grouped_by_their_windows(
    windows: list[int | None], expected: list[tuple[int | None, int]]
):
    groups = lay_out(specs_of(windows), 32768).groups
    assert [(group.window, len(group.layers)) for group in groups] == expected
    assert sorted(i for group in groups for i in group.layers) == list(range(len(windows)))
    for group in groups:
        for i in group.layers:
            assert windows[i] == group.window or group.window is None


def gemma4(
    num_layers: int, every: int, *, windowed: int, full: int, shared: int = 0
) -> list[KVCacheSpec]:
    """Args: windowed, full: kv heads of layers with a window, and of the last of every so many."""
    specs = [KVCacheSpec(windowed, 4, 4, window=512)] * num_layers
    specs[every - 1 :: every] = [KVCacheSpec(full, 8, 8)] * (num_layers // every)
    first_shared = num_layers - shared
    return specs[:first_shared] + [spec._replace(num_kv_heads=0) for spec in specs[first_shared:]]


GEMMA_3N = [*specs_of([*[512] * 4, None] * 4), *[KVCacheSpec(0, 4, 4, window=512)] * 15]
GEMMA_4_E2B = gemma4(35, 5, windowed=1, full=1, shared=20)
GEMMA_4_31B = gemma4(60, 6, windowed=16, full=4)
GEMMA_4_26B = gemma4(30, 6, windowed=8, full=2)


@pytest.mark.parametrize(
    ("specs", "expected", "factor"),
    [
        pytest.param(GEMMA_3N, [(None, 4), *[(512, 4)] * 4], 4.6, id="gemma3n"),
        pytest.param(GEMMA_4_E2B, [(None, 3), *[(512, 6)] * 2], 2.8, id="gemma4-e2b"),
        pytest.param(GEMMA_4_31B, [(None, 10), *[(512, 5)] * 10], 9.1, id="gemma4-31b"),
        pytest.param(
            GEMMA_4_26B, [(None, 5), *[(512, 3)] * 8, (512, 1)], 7.7, id="where-nothing-fits-well"
        ),
        pytest.param(
            [*specs_of([None] * 2), *specs_of([None] * 3, head_dim=6)], [(None, 5)], 1, id="shapes"
        ),
    ],
)
def test_layers_of_other_shapes_have_groups_of_their_own(
    specs: list[KVCacheSpec], expected: list[tuple[int | None, int]], factor: float
):
    groups = lay_out(specs, 2**17).groups
    num_keeping = [sum(specs[i].num_elements > 0 for i in group.layers) for group in groups]
    assert list(zip([group.window for group in groups], num_keeping, strict=True)) == expected
    assert sorted(i for group in groups for i in group.layers) == list(range(len(specs)))
    without = [spec._replace(window=None) for spec in specs]
    assert bytes_per_sequence(without, 2**17) >= factor * bytes_per_sequence(specs, 2**17)


@given(
    specs=st.lists(
        st.builds(
            KVCacheSpec,
            st.sampled_from([0, 1, 2, 4]),
            st.sampled_from([4, 6]),
            st.just(4),
            values_in_keys=st.booleans(),
            window=st.sampled_from([None, 16, 64, 500]),
        ),
        min_size=1,
        max_size=40,
    ).filter(lambda specs: any(spec.num_elements for spec in specs)),
    max_model_len=st.integers(1, 4096),
)
def test_windows_never_take_more_memory_than_none(specs: list[KVCacheSpec], max_model_len: int):
    without = bytes_per_sequence([spec._replace(window=None) for spec in specs], max_model_len)
    assert bytes_per_sequence(specs, max_model_len) <= without


def test_five_windowed_layers_in_six_give_nearly_six_times_the_context():
    windows = [*[512] * 5, None] * 4
    with_windows = bytes_per_sequence(specs_of(windows), 2**17)
    without = bytes_per_sequence(specs_of([None] * len(windows)), 2**17)
    assert without / with_windows > 5


LATENT = KVCacheSpec(1, 6, 4, values_in_keys=True)


@pytest.mark.parametrize(
    "specs",
    [
        pytest.param(specs_of([*[512] * 5, None] * 4 + [512] * 2), id="alike"),
        pytest.param(GEMMA_4_E2B, id="gemma4-e2b"),
        pytest.param(GEMMA_4_26B, id="gemma4-26b"),
        pytest.param([LATENT, KVCacheSpec(1, 5, 3, window=16)], id="values-in-keys"),
        pytest.param([LATENT, LATENT._replace(window=16)] * 2, id="values-in-all-keys"),
    ],
)
def test_all_groups_have_the_same_memory_and_a_block_is_one_groups(specs: list[KVCacheSpec]):
    layout = lay_out(specs, 32768)
    caches = allocate(specs, layout.groups, 3, 16, dtype=torch.bfloat16, device=torch.device("cpu"))
    entries = [x for cache in caches for x in (cache.k, cache.v) if x.numel()]
    storages = {x.data_ptr(): x for x in map(torch.Tensor.untyped_storage, entries)}
    assert sum(x.nbytes() for x in storages.values()) == 3 * layout.bytes_per_block
    for index, group in enumerate(layout.groups):
        of_group = [caches[i] for i in group.layers]
        assert {cache.group for cache in of_group} == {index}
        for x in entries:
            x.zero_()
        parts = [
            part
            for i, cache in zip(group.layers, of_group, strict=True)
            for part in ([cache.k] if specs[i].values_in_keys else [cache.k, cache.v])
            if part.numel()
        ]
        for number, part in enumerate(parts, 1):
            part.view(-1, *part.shape[2:])[16:32] = number  # the slots of block 1
        for number, part in enumerate(parts, 1):
            assert bool((part[1] == number).all()), "keys and values lie apart"
        assert not any(x[[0, 2]].any() for x in entries), "other blocks are others'"


def test_keys_and_values_are_contiguous_where_layers_are_alike():
    specs = specs_of([*[512] * 5, None] * 4 + [512] * 2)
    groups = lay_out(specs, 32768).groups
    caches = allocate(specs, groups, 3, 16, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert all(x.is_contiguous() for cache in caches for x in (cache.k, cache.v))


@pytest.mark.parametrize("windows", [[None] * 2, [512, None], [512, 512]], ids=str)
@pytest.mark.parametrize("num_kib", [-8, 0, 130, 150])
def test_a_cache_that_does_not_fit_says_what_would_help(windows: list[int | None], num_kib: int):
    specs = specs_of(windows)
    with pytest.raises(ModelLoadError) as caught:
        num_blocks_that_fit(
            partial(lay_out, specs), max_model_len=2**20, max_num_seqs=1, num_bytes=num_kib * 1024
        )
    need = bytes_per_sequence(specs, 2**20)
    assert f"needs {need / 2**30:.2f} GiB" in caught.value.message
    match = re.search(r"MAX_SEQ_LEN to at most (\d+),", caught.value.message)
    assert (match is None) == (num_kib <= 0)
    if match is not None:
        longest = int(match[1])
        assert bytes_per_sequence(specs, longest) <= num_kib * 1024
        assert bytes_per_sequence(specs, longest + 1) > num_kib * 1024


def test_the_cache_is_no_larger_than_its_sequences_can_use():
    num_blocks = num_blocks_that_fit(
        partial(lay_out, specs_of([None])), max_model_len=100, max_num_seqs=3, num_bytes=2**40
    )
    assert num_blocks == 4 * 3 * 7
