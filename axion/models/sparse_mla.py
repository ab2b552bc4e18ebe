"""Latent attention to a few tokens, which a small attention of its own chooses (DeepSeek sparse
attention, arXiv:2512.02556)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.attention import choose_tokens
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.layers.linear import DenseLinear, Linear
from axion.layers.norm import LayerNorm
from axion.layers.rotary import apply_rotary
from axion.models.config import DecoderConfig, Size
from axion.models.indexed import IndexedForCausalLM
from axion.models.mla import MLA, MLAConfig
from axion.models.moe import SharedMoEForCausalLM


@dataclass(kw_only=True)
class SparseMLAConfig(MLAConfig):
    """
    Attributes:
        index_topk: tokens that a token attends to at most.
        index_n_heads, index_head_dim: heads of the indexer, and their size.
        indexer_types: a `shared` layer takes what the last `full` layer before it has chosen; by
            default all are full.
        layer_types: always `indexed_attention`.
        head_dim: what is rotated of a head, whatever config.json says.
    """

    q_lora_rank: Size = 1536
    rope_interleave: Literal[True] = True
    index_topk: Size = 2048
    index_n_heads: Size = 64
    index_head_dim: Size = 128
    indexer_types: list[Literal["full", "shared"]] | None = None
    layer_types: list[Literal["indexed_attention"]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.head_dim = self.qk_rope_head_dim
        if self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim ({self.index_head_dim}) must not be below qk_rope_head_dim "
                f"({self.qk_rope_head_dim})"
            )
        if self.indexer_types is None:
            self.indexer_types = ["full"] * self.num_hidden_layers
        kinds = self.indexer_types
        first = next((i for i in range(self.num_hidden_layers) if self.is_indexed(i)), None)
        if len(kinds) != self.num_hidden_layers or (first is not None and kinds[first] != "full"):
            raise ValueError(
                f"indexer_types must name {self.num_hidden_layers} layers, the first of those that "
                "attend to chosen tokens full"
            )

    def is_indexed(self, layer_idx: int) -> bool:
        """Whether the layer attends to tokens that are chosen."""
        return True

    def chooser(self, layer_idx: int) -> int | None:
        """The layer whose choice the layer attends to; None: it attends to all tokens."""
        return max(
            i
            for i in range(layer_idx + 1)
            if self.is_indexed(i) and self.indexer_types[i] == "full"
        )


class Indexer(nn.Module):
    """Chooses the tokens that each token attends to.

    Its keys are kept in a KV cache of their own.
    """

    def __init__(
        self,
        config: SparseMLAConfig,
        cache_idx: int,
        rotate: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        num_heads, self.head_dim = config.index_n_heads, config.index_head_dim
        self.num_chosen = self.max_attended = config.index_topk
        self.cache_idx = cache_idx
        self.kv_cache_spec = KVCacheSpec(1, self.head_dim, 0)
        self.rotate = rotate
        q_size = config.q_lora_rank or config.hidden_size
        self.wq_b = Linear(q_size, num_heads * self.head_dim)
        self.wk = Linear(config.hidden_size, self.head_dim)
        self.k_norm = LayerNorm(self.head_dim, eps=1e-6)
        self.weights_proj = DenseLinear(config.hidden_size, num_heads)
        self.scale = (num_heads * self.head_dim) ** -0.5

    def forward(
        self,
        q_latent: Tensor,
        hidden_states: Tensor,
        tables: tuple[Tensor, Tensor],
        context: ForwardContext,
    ) -> Tensor | None:
        """As `choose_tokens`.

        Args:
            tables: cosines and sines, of the rope of the layer's attention.
        """
        q = self.queries(q_latent, context)
        k = self.k_norm(self.wk(hidden_states))[:, None]
        weights = F.linear(hidden_states.float(), self.weights_proj.weight.float())
        return choose_tokens(
            self.rotate(q, *tables),
            self.rotate(k, *tables)[:, 0],
            weights * self.scale,
            context.kv_caches[self.cache_idx],
            context,
            num_chosen=self.num_chosen,
        )

    def queries(self, q_latent: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, q_lora_rank]` to `[num_tokens, index_n_heads, index_head_dim]`."""
        return self.wq_b(q_latent).unflatten(-1, (-1, self.head_dim))


class SparseMLA(MLA):
    """Latent attention to the tokens that its indexer, or an earlier layer's, chooses.

    Attributes:
        rotate_index: which dimensions of the indexer's heads are rotated as pairs.
    """

    indexer_cls: ClassVar[type[Indexer]] = Indexer
    rotate_index: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(apply_rotary)

    def __init__(self, config: SparseMLAConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.chooser = config.chooser(layer_idx)
        if self.chooser == layer_idx:
            # Behind the layers' own caches: see `IndexedForCausalLM`.
            cache_idx = config.num_hidden_layers + layer_idx
            self.indexer = self.indexer_cls(config, cache_idx, self.rotate_index)

    def choose(
        self, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor | None:
        if self.chooser is None:
            return None

        def choose(context: ForwardContext) -> Tensor | None:
            return self.index(q_latent, hidden_states, context)

        return context.once((SparseMLA, self.chooser), choose)

    def index(
        self, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor | None:
        """What the layer's own indexer chooses; arguments and result as of `choose`."""
        tables = self.rotary_emb(context, hidden_states.dtype)
        return self.indexer(q_latent, hidden_states, tables, context)


class SparseMLAForCausalLM(IndexedForCausalLM, SharedMoEForCausalLM):
    config_cls: ClassVar[type[DecoderConfig]] = SparseMLAConfig
    attention_cls = SparseMLA
