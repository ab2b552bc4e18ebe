"""How large the KV cache can be, and its tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from axion.engine.block_manager import max_blocks_held
from axion.engine.control_group import memory_headroom
from axion.errors import ModelLoadError
from axion.layers.context import KVCache, KVCacheSpec
from axion.layers.kv_format import KVFormat

# Beyond this many full-length sets of running sequences, more cache only keeps old prefixes.
_MAX_SETS = 4
# A group less is worth this share of the memory: a sequence has a block table for each.
_GROUP_COST = 1 / 64
_GIB = 2**30


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still allocate on the device.

    On CPU that is what the machine, or the control group the process is confined to, has
    available; on CUDA what the driver reports plus what torch holds and does not use.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available: int = psutil.virtual_memory().available
    headroom = memory_headroom()
    return available if headroom is None else min(available, headroom)


def budget(
    device: torch.device, num_bytes: int | None, fraction: float, *, num_reserved_bytes: int = 0
) -> int:
    """Bytes that the cache may take: `num_bytes`, or this share of what is free.

    Args:
        num_reserved_bytes: of those that are free, for something else.

    Raises:
        ModelLoadError: there are not so many free.
    """
    free = free_memory(device) - num_reserved_bytes
    if num_bytes is None:
        return int(free * fraction)
    if num_bytes > free:
        raise ModelLoadError(
            f"The KV cache is to take {num_bytes / _GIB:.2f} GiB (KV_CACHE_GIB), and "
            f"{free / _GIB:.2f} GiB of {device.type} memory are free beside the model's weights. "
            "Give it at most that, or unset KV_CACHE_GIB to have it measured."
        )
    return num_bytes


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

    All groups take blocks from one pool, so a block of each has the same room for a token, which
    the layers of a group share. Layers with one window that need more are several groups, and
    where they need less, some of their blocks' memory stays empty. Where windows would save little,
    all layers stay together.

    Args:
        max_chunk: tokens of one sequence that a step computes at most.
    """

    def num_blocks(*windows: int | None) -> int:
        return max_blocks_held(
            max_model_len, windows=windows, max_chunk=max_chunk, block_size=block_size
        )

    sizes = [spec.num_elements for spec in specs]
    by_window: dict[int | None, list[int]] = {}
    for layer, spec in enumerate(specs):
        if sizes[layer]:
            is_wide = spec.window is None or spec.window >= max_model_len
            # Of 2 at least: the block of the last computed token stays, for a draft model.
            window = None if is_wide else max(spec.window or 0, 2)
            by_window.setdefault(window, []).append(layer)
    if not by_window:  # a sequence keeps its state, and nothing for each token
        return KVCacheLayout([KVCacheGroup(None, list(range(len(specs))))], 0, num_blocks(None))
    widest_first = sorted(by_window, key=lambda window: -(window or max_model_len))

    def divide(room: int) -> list[KVCacheGroup]:
        groups: list[KVCacheGroup] = []
        for window in widest_first:
            left = 0
            for layer in by_window[window]:
                if sizes[layer] > left:
                    groups.append(KVCacheGroup(window, []))
                    left = room
                groups[-1].layers.append(layer)
                left -= sizes[layer]
        return groups

    # A short sequence holds as many blocks of all groups, a long one more of some.
    needed = [
        sum(sizes),
        sum(num_blocks(window) * sizes[i] for window in by_window for i in by_window[window]),
    ]

    def cost(groups: list[KVCacheGroup]) -> float:
        room = _room(specs, groups)
        held = [len(groups), num_blocks(*(group.window for group in groups))]
        empty = max(1 - n / (room * num_held) for n, num_held in zip(needed, held, strict=True))
        return empty + len(groups) * _GROUP_COST

    together = [KVCacheGroup(widest_first[0], sorted(chain(*by_window.values())))]
    rooms = {x for layers in by_window.values() for x in accumulate(sizes[i] for i in layers)}
    divided = [divide(room) for room in sorted(rooms) if room >= max(sizes)]
    groups = min([together, *divided], key=cost)
    groups[0].layers.extend(layer for layer, size in enumerate(sizes) if not size)
    return KVCacheLayout(
        groups,
        _room(specs, groups) * block_size * dtype.itemsize,
        num_blocks(*(group.window for group in groups)),
    )


def _room(specs: list[KVCacheSpec], groups: list[KVCacheGroup]) -> int:
    """Numbers that a block keeps for each of its tokens, of whichever group."""
    return max(sum(specs[i].num_elements for i in group.layers) for group in groups)


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
    if not layout.bytes_per_block:  # blocks of names only: enough that nobody waits for one
        return max_num_seqs * layout.num_blocks_per_sequence
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
    """Each layer's keys and values: `[num_blocks, block_size, num_kv_heads, head_dim]`.

    All groups have the same memory, because a block belongs to one of them. It is cut into tensors
    wherever that cuts no key or value of any group, so that these are contiguous where the groups'
    layers are alike.
    """
    offsets = [
        list(accumulate(chain(*(_widths(specs[i]) for i in group.layers)), initial=0))
        for group in groups
    ]
    starts = sorted(
        x for x in set(chain(*offsets)) if all(x in own or x > own[-1] for own in offsets)
    )
    tensors = [
        torch.empty((num_blocks, block_size, end - start), dtype=dtype, device=device)
        for start, end in pairwise([*starts, starts[-1]])  # the last: for layers without any
    ]

    def part(offset: int, num_kv_heads: int, head_dim: int) -> Tensor:
        index = bisect_right(starts, offset) - 1
        tensor = tensors[index].narrow(-1, offset - starts[index], num_kv_heads * head_dim)
        return tensor.unflatten(-1, (num_kv_heads, head_dim))

    by_layer: dict[int, KVCache] = {}
    for index, (group, own) in enumerate(zip(groups, offsets, strict=True)):
        for i, k_offset, v_offset in zip(group.layers, own[:-1:2], own[1::2], strict=True):
            spec = specs[i]
            k = part(k_offset, spec.num_kv_heads, spec.k_head_dim)
            if spec.values_in_keys:
                v = k[..., : spec.v_head_dim]
            else:
                v = part(v_offset, spec.num_kv_heads, spec.v_head_dim)
            by_layer[i] = KVCache(k, v, index, None, spec.stride, spec.num_pieces)
    return [by_layer[i] for i in range(len(specs))]


def stored_spec(spec: KVCacheSpec, format: KVFormat) -> KVCacheSpec:
    """What a layer keeps in this format: bytes in place of numbers."""
    return spec._replace(
        k_head_dim=format.width(spec.k_head_dim),
        v_head_dim=format.width(spec.v_head_dim) if spec.v_head_dim else 0,
    )


def _widths(spec: KVCacheSpec) -> tuple[int, int]:
    """Numbers of a token's key and of its value that are kept."""
    k_width = spec.num_kv_heads * spec.k_head_dim
    return k_width, spec.num_elements - k_width
