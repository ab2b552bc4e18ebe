"""How large the KV cache can be, and its tensors."""

from __future__ import annotations

from pathlib import Path

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


def block_bytes(specs: list[KVCacheSpec], block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    return sum(spec.num_elements for spec in specs) * block_size * dtype.itemsize


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
        shorten = f"Set MAX_SEQ_LEN to at most {longest}, or give" if longest > 0 else "Give"
        raise ModelLoadError(
            f"The KV cache needs {need:.2f} GiB for one sequence of {max_model_len} tokens, and "
            f"{max(num_bytes, 0) / _GIB:.2f} GiB may be used. {shorten} it more with "
            "KV_CACHE_GIB or MEMORY_FRACTION."
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

    def layer(spec: KVCacheSpec) -> KVCache:
        def tensor(head_dim: int) -> Tensor:
            shape = (num_blocks, block_size, spec.num_kv_heads, head_dim)
            return torch.empty(shape, dtype=dtype, device=device)

        k = tensor(spec.k_head_dim)
        values_in_keys = k[..., : spec.v_head_dim]
        return KVCache(k, values_in_keys if spec.values_in_keys else tensor(spec.v_head_dim))

    return [layer(spec) for spec in specs]
