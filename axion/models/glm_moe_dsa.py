"""GLM-5 (Z.ai, 2026): DeepSeek-V3.2's sparse attention, whose choice several layers may share
(arXiv:2603.12201)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from axion.layers.rotary import Length, apply_rotary_interleaved
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.sparse_mla import SparseMLA, SparseMLAConfig, SparseMLAForCausalLM

_KINDS = {"F": "full", "S": "shared"}


@dataclass(kw_only=True)
class GlmMoeDsaConfig(SparseMLAConfig):
    """
    Attributes:
        index_topk_pattern: `indexer_types`, as a string of F and S or as a list.
        index_topk_freq, index_skip_topk_offset: without those, of the layers from
            `index_skip_topk_offset - 1` on each so many-th is full, and all before it.
    """

    num_key_value_heads: Size | None = 64
    max_position_embeddings: Length = 202752
    rms_norm_eps: Epsilon = 1e-5
    q_lora_rank: Size = 2048
    qk_nope_head_dim: Size = 192
    v_head_dim: Size = 256
    index_n_heads: Size = 32
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 2048
    first_k_dense_replace: Index = 3
    num_nextn_predict_layers: Index = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    index_topk_pattern: str | list[Literal["full", "shared"]] | None = None
    index_topk_freq: Index = 1
    index_skip_topk_offset: int = 2
    indexer_rope_interleave: Literal[True] = True

    def __post_init__(self) -> None:
        if self.indexer_types is None:
            self.indexer_types = self._indexer_types()
        super().__post_init__()

    def _indexer_types(self) -> list[Any]:
        if isinstance(self.index_topk_pattern, str):
            return [_KINDS.get(kind, kind) for kind in self.index_topk_pattern]
        if self.index_topk_pattern is not None:
            return self.index_topk_pattern
        steps = (max(i - self.index_skip_topk_offset + 1, 0) for i in range(self.num_hidden_layers))
        return ["shared" if step % max(self.index_topk_freq, 1) else "full" for step in steps]


class GlmMoeDsaAttention(SparseMLA):
    rotate_index = staticmethod(apply_rotary_interleaved)


class GlmMoeDsaForCausalLM(SparseMLAForCausalLM):
    architectures = ("GlmMoeDsaForCausalLM",)
    config_cls = GlmMoeDsaConfig
    attention_cls = GlmMoeDsaAttention
