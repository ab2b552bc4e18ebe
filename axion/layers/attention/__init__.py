"""Attention: over the paged KV cache for decoders, over whole sequences for encoders. Models call
these and know no kernel."""

from __future__ import annotations

from axion.layers.attention.compressed import entry_inputs, entry_rows
from axion.layers.attention.full import full_attention
from axion.layers.attention.groups import pool_groups, tokens_of_groups
from axion.layers.attention.indexer import choose_blocks, choose_tokens
from axion.layers.attention.options import Compressed
from axion.layers.attention.paged import paged_attention

__all__ = [
    "Compressed",
    "choose_blocks",
    "choose_tokens",
    "entry_inputs",
    "entry_rows",
    "full_attention",
    "paged_attention",
    "pool_groups",
    "tokens_of_groups",
]
