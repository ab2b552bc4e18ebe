"""Granite 4 (IBM, 2025): a Granite most of whose layers are Mamba-2, with experts beside a shared
one, or with that one alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.models.base import MLP
from axion.models.config import Index, Size
from axion.models.granite import GraniteAttention
from axion.models.granite_moe import GraniteMoeSharedConfig, GraniteMoeSharedForCausalLM
from axion.models.hybrid import HybridForCausalLM, num_layers
from axion.models.mamba2_mixer import Mamba2Config, Mamba2Mixer


@dataclass(kw_only=True)
class GraniteMoeHybridConfig(Mamba2Config, GraniteMoeSharedConfig):
    """
    Attributes:
        num_experts: may be 0.
        position_embedding_type: "rope"; any other: attention has no positions.
    """

    num_experts: Index = 8
    num_experts_per_tok: Index = 2
    shared_intermediate_size: Size = 1024
    position_embedding_type: str | None = None

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        if config.get("layer_types") is None:
            derived["layer_types"] = ["linear_attention"] * num_layers(config)
        if not config.get("num_local_experts", 8):
            derived["num_experts_per_tok"] = 0
        return derived, sources

    def is_sparse(self, layer_idx: int) -> bool:
        return self.num_experts > 0


class GraniteHybridAttention(GraniteAttention):
    def __init__(self, config: GraniteMoeHybridConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_rotated = config.position_embedding_type == "rope"

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return super().rotate_qk(q, k, context) if self.is_rotated else (q, k)


class SharedMLP(nn.Module):
    """The shared expert without others."""

    def __init__(self, config: GraniteMoeHybridConfig, layer_idx: int) -> None:
        super().__init__()
        shared_config = replace(config, intermediate_size=config.shared_intermediate_size)
        self.shared_expert = MLP(shared_config, layer_idx)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        return self.shared_expert(hidden_states)


class GraniteMoeHybridForCausalLM(HybridForCausalLM, GraniteMoeSharedForCausalLM):
    architectures = ("GraniteMoeHybridForCausalLM",)
    renamed_tensors = (*GraniteMoeSharedForCausalLM.renamed_tensors, (r"\.mamba\.", ".self_attn."))
    config_cls = GraniteMoeHybridConfig
    mlp_cls = SharedMLP
    mixers = (
        ("attention", GraniteHybridAttention),
        ("full_attention", GraniteHybridAttention),
        ("mamba", Mamba2Mixer),
        ("linear_attention", Mamba2Mixer),
    )
    config: GraniteMoeHybridConfig
