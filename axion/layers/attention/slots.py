"""Where the tokens of a step's sequences lie in the KV cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.kv_format import SlotRun
from axion.layers.transfer import to_device


def token_sequences(context: ForwardContext) -> Tensor:
    """Index of each token's sequence, `[num_tokens]`."""
    device = context.positions.device
    if max(context.query_lens) == 1:
        return torch.arange(len(context.query_lens), device=device)
    counts = to_device(np.array(context.query_lens), device)
    return torch.arange(len(counts), device=device).repeat_interleave(
        counts, output_size=sum(context.query_lens)
    )


def token_slots(block_tables: Tensor, tokens: Tensor, block_size: int) -> Tensor:
    """Slots of `tokens` (indices in their sequence, `[num_seqs, length]`), same shape."""
    blocks = block_tables.gather(1, tokens // block_size)
    return blocks.long() * block_size + tokens % block_size


def as_run(slots: Tensor) -> Tensor | SlotRun:
    """The same as a run, if it is one and on a CPU."""
    is_run = slots.device.type == "cpu" and slots.numel() == slots.shape[-1]
    if is_run and bool((slots.diff() == 1).all()):
        return SlotRun(int(slots.flatten()[0]), slots.shape)
    return slots
