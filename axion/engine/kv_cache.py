"""How large the KV cache can be, and its tensors."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.layers.context import KVCache, KVCacheSpec

# Beyond this many full-length sets of running sequences, more cache only keeps old prefixes.
_MAX_SETS = 4
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


def _cgroup_headroom() -> int:
    try:
        with (
            open("/sys/fs/cgroup/memory.max") as limit,
            open("/sys/fs/cgroup/memory.current") as current,
        ):
            return int(limit.read()) - int(current.read())
    except (OSError, ValueError):  # no version-2 control group, or "max"
        return psutil.virtual_memory().total


def block_bytes(specs: list[KVCacheSpec], block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    num_elements = sum(spec.num_kv_heads * (spec.k_head_dim + spec.v_head_dim) for spec in specs)
    return num_elements * block_size * dtype.itemsize


def num_blocks_that_fit(
    *,
    bytes_per_block: int,
    block_size: int,
    max_model_len: int,
    max_num_seqs: int,
    num_bytes: int,
) -> int:
    """Blocks for a cache of at most `num_bytes`.

    Raises:
        ModelLoadError: not even one sequence of `max_model_len` tokens fits.
    """
    num_blocks_per_sequence = -(-max_model_len // block_size)
    num_blocks = min(
        num_bytes // bytes_per_block, _MAX_SETS * max_num_seqs * num_blocks_per_sequence
    )
    if num_blocks < num_blocks_per_sequence:
        need = num_blocks_per_sequence * bytes_per_block / _GIB
        longest = num_bytes // bytes_per_block * block_size
        raise ModelLoadError(
            f"The KV cache needs {need:.2f} GiB for one sequence of {max_model_len} tokens, and "
            f"{max(num_bytes, 0) / _GIB:.2f} GiB may be used. Set MAX_SEQ_LEN to at most "
            f"{longest}, or give it more with KV_CACHE_GIB or MEMORY_FRACTION."
        )
    return num_blocks


def allocate(
    specs: list[KVCacheSpec],
    num_blocks: int,
    block_size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> list[KVCache]:
    """One key and one value tensor a layer: [num_blocks, block_size, num_kv_heads, head_dim]."""

    def tensor(num_heads: int, head_dim: int) -> Tensor:
        return torch.empty(num_blocks, block_size, num_heads, head_dim, dtype=dtype, device=device)

    return [
        KVCache(
            tensor(spec.num_kv_heads, spec.k_head_dim), tensor(spec.num_kv_heads, spec.v_head_dim)
        )
        for spec in specs
    ]
