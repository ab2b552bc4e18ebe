"""The standard decoder with layers that attend to tokens that they choose."""

from __future__ import annotations

from axion.layers.context import NO_KV_CACHE, KVCacheSpec
from axion.models.base import CausalLM


class IndexedForCausalLM(CausalLM):
    """A decoder whose layers have a KV cache of their own, and another for their indexers.

    An `indexer` is what attention has to choose with. It has a `kv_cache_spec`, and `max_attended`:
    of a sequence of so many tokens, it chooses all.
    """

    batch_dependence = (
        "it attends to the tokens that score best, and the last bits of scores depend on the batch"
    )

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        """What each layer needs of the KV cache, and then its indexer."""
        attentions = [layer.self_attn for layer in self.model.layers]
        return super().kv_cache_specs() + [
            attention.indexer.kv_cache_spec if hasattr(attention, "indexer") else NO_KV_CACHE
            for attention in attentions
        ]

    def attends_to_all_of(self, num_tokens: int) -> bool:
        attentions = [layer.self_attn for layer in self.model.layers]
        return all(
            attention.indexer.max_attended >= num_tokens
            for attention in attentions
            if hasattr(attention, "indexer")
        )
