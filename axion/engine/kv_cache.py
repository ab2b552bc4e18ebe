"""How large the KV cache can be, and its tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from math import gcd
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from axion.engine.block_manager import max_blocks_held
from axion.errors import ModelLoadError
from axion.layers.context import KVCache, KVCacheSpec

# Beyond this many full-length sets of running sequences, more cache only keeps old prefixes.
_MAX_SETS = 4
# Share of the memory that may stay empty because groups have differently many layers. With none
# there would be more groups, and a sequence has a block table for each.
_MAX_EMPTY = 1 / 8
_GIB = 2**30


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still allocate on the device.

    On CPU that is what the machine, or the control group the process is confined to, has
    available; on CUDA what the driver reports plus what torch holds and does not use.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(psutil.virtual_memory().available, _cgroup_headroom())


def _cgroup_headroom(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """What the process's control group (version 2), and each that it lies in, has left."""
    headroom = psutil.virtual_memory().total
    try:
        [name] = (line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, ValueError):  # no version-2 control group
        return headroom
    group = root / name.strip("/")
    for folder in (group, *group.parents):
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Files that were read, such as the weights, count as used until their place is needed.
        files = int(stat["active_file"]) + int(stat["inactive_file"])
        headroom = min(headroom, limit - used + files)
    return headroom


class KVCacheGroup(NamedTuple):
    """Layers, by their indices, that share a block table of each sequence.

    Attributes:
        window: none of them attends to more tokens; None: there is no such limit.
    """

    window: int | None
    layers: list[int]


class KVCacheLayout(NamedTuple):
    """How a model's layers share blocks.

    Attributes:
        bytes_per_block: of whichever group.
        num_blocks_per_sequence: blocks that the longest sequence holds at most.
    """

    groups: list[KVCacheGroup]
    bytes_per_block: int
    num_blocks_per_sequence: int

    @property
    def windows(self) -> tuple[int | None, ...]:
        return tuple(group.window for group in self.groups)


def lay_out(
    specs: list[KVCacheSpec],
    max_model_len: int,
    *,
    block_size: int,
    max_chunk: int,
    dtype: torch.dtype,
) -> KVCacheLayout:
    """Divide the layers into groups by their windows, the widest first.

    All groups take blocks from one pool, so a block has room for equally many layers of each, and
    of a window that many layers have there are several groups. Where a group has fewer layers,
    some of its blocks' memory stays empty.

    Layers whose entries differ in shape stay together.

    Args:
        max_chunk: tokens of one sequence that a step computes at most.
    """

    def num_blocks(*windows: int | None) -> int:
        return max_blocks_held(
            max_model_len, windows=windows, max_chunk=max_chunk, block_size=block_size
        )

    by_window: dict[int | None, list[int]] = {}
    for layer, spec in enumerate(specs):
        is_wide = spec.window is None or spec.window >= max_model_len
        by_window.setdefault(None if is_wide else spec.window, []).append(layer)
    widest_first = sorted(by_window, key=lambda window: -(window or max_model_len))
    if len(by_window) == 1 or len({spec._replace(window=None) for spec in specs}) > 1:
        groups = [KVCacheGroup(widest_first[0], list(range(len(specs))))]
    else:
        counts = [len(by_window[window]) for window in widest_first]
        # A short sequence holds as many blocks of all groups, a long one more of some.
        weights = [[1] * len(counts), [num_blocks(window) for window in widest_first]]
        size = next(
            size
            for size in (*sorted(counts), gcd(*counts))
            if all(_empty_share(size, counts, w) <= _MAX_EMPTY for w in weights)
        )
        groups = [
            KVCacheGroup(window, by_window[window][start : start + size])
            for window in widest_first
            for start in range(0, len(by_window[window]), size)
        ]
    num_elements = max(sum(specs[i].num_elements for i in group.layers) for group in groups)
    return KVCacheLayout(
        groups,
        num_elements * block_size * dtype.itemsize,
        num_blocks(*(group.window for group in groups)),
    )


def _empty_share(size: int, counts: list[int], num_blocks: list[int]) -> float:
    """Share of the memory that stays empty when a block has room for `size` layers."""
    filled = sum(count * n for count, n in zip(counts, num_blocks, strict=True))
    taken = sum(-(-count // size) * size * n for count, n in zip(counts, num_blocks, strict=True))
    return 1 - filled / taken


def num_blocks_that_fit(
    lay_out: Callable[[int], KVCacheLayout],
    *,
    max_model_len: int,
    max_num_seqs: int,
    num_bytes: int,
) -> int:
    """Blocks for a cache of at most `num_bytes`.

    Args:
        lay_out: says how the cache is divided for sequences of at most so many tokens.

    Raises:
        ModelLoadError: not even one sequence of `max_model_len` tokens fits.
    """

    def num_bytes_needed(max_model_len: int) -> int:
        layout = lay_out(max_model_len)
        return layout.num_blocks_per_sequence * layout.bytes_per_block

    need = num_bytes_needed(max_model_len)
    if need > num_bytes:
        lengths = range(1, max_model_len)
        longest = bisect_right(lengths, num_bytes, key=num_bytes_needed)
        shorten = f"Set MAX_SEQ_LEN to at most {longest}, or give" if longest > 0 else "Give"
        raise ModelLoadError(
            f"The KV cache needs {need / _GIB:.2f} GiB for one sequence of {max_model_len} tokens, "
            f"and {max(num_bytes, 0) / _GIB:.2f} GiB may be used. {shorten} it more with "
            "KV_CACHE_GIB or MEMORY_FRACTION."
        )
    layout = lay_out(max_model_len)
    return min(
        num_bytes // layout.bytes_per_block,
        _MAX_SETS * max_num_seqs * layout.num_blocks_per_sequence,
    )


def allocate(
    specs: list[KVCacheSpec],
    groups: list[KVCacheGroup],
    num_blocks: int,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> list[KVCache]:
    """Each layer's keys and values: [num_blocks, block_size, num_kv_heads, head_dim].

    The n-th layers of all groups have the same tensors, because a block belongs to one group.
    """

    def layer(spec: KVCacheSpec) -> KVCache:
        def tensor(head_dim: int) -> Tensor:
            shape = (num_blocks, block_size, spec.num_kv_heads, head_dim)
            return torch.empty(shape, dtype=dtype, device=device)

        k = tensor(spec.k_head_dim)
        values_in_keys = k[..., : spec.v_head_dim]
        return KVCache(k, values_in_keys if spec.values_in_keys else tensor(spec.v_head_dim))

    largest = max(groups, key=lambda group: len(group.layers))
    shared = [layer(specs[i]) for i in largest.layers]
    by_layer = {
        i: cache._replace(group=index)
        for index, group in enumerate(groups)
        for i, cache in zip(group.layers, shared, strict=False)
    }
    return [by_layer[i] for i in range(len(specs))]
