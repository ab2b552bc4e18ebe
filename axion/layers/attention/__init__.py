"""Attention over the paged KV cache. Models call `paged_attention` and know no kernel."""

from __future__ import annotations

from axion.layers.attention.reference import paged_attention

__all__ = ["paged_attention"]
