"""Qwen1.5-MoE and Qwen2-MoE (arXiv:2407.10671): beside the experts a shared one with a gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from axion.layers.linear import Linear
from axion.layers.rotary import Length
from axion.models.base import MLP
from axion.models.config import Index, NumExperts, Size, WindowConfig
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class Qwen2MoeStepConfig(MoEConfig):
    """Which layers have experts, as all of Qwen's say it.

    Attributes:
        decoder_sparse_step: every so many-th layer has experts.
        mlp_only_layers: these have none all the same.
    """

    max_position_embeddings: Length = 32768
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[Index] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mlp_only_layers = self.mlp_only_layers or []

    def is_sparse(self, layer_idx: int) -> bool:
        is_step = (layer_idx + 1) % self.decoder_sparse_step == 0
        return is_step and layer_idx not in self.mlp_only_layers


@dataclass(kw_only=True)
class Qwen2MoeBaseConfig(WindowConfig, Qwen2MoeStepConfig):
    """The fields that Qwen3-MoE has too."""

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        if not config.get("use_sliding_window"):
            derived["sliding_window"] = None
        return derived, sources | {"use_sliding_window"}


@dataclass(kw_only=True)
class Qwen2MoeConfig(Qwen2MoeBaseConfig):
    """
    Attributes:
        max_window_layers: without `layer_types`, of the first so many every second attends to a
            window.
    """

    renamed_fields = (("qkv_bias", "attention_bias"),)

    num_key_value_heads: Size | None = 16
    attention_bias: bool = True
    num_experts: NumExperts = 60
    num_experts_per_tok: NumExperts = 4
    moe_intermediate_size: Size = 1408
    shared_expert_intermediate_size: Size = 5632
    max_window_layers: Index = 28

    @property
    def output_bias(self) -> bool:
        return False

    def is_sliding(self, layer_idx: int) -> bool:
        if self.layer_types is not None:
            return super().is_sliding(layer_idx)
        return layer_idx % 2 == 0 and layer_idx < self.max_window_layers


class Qwen2MoE(MoE):
    def __init__(self, config: Qwen2MoeConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        shared_config = replace(config, intermediate_size=config.shared_expert_intermediate_size)
        self.shared_expert = MLP(shared_config, layer_idx)
        self.shared_expert_gate = Linear(config.hidden_size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate = self.shared_expert_gate(hidden_states).sigmoid()
        return super().forward(hidden_states) + gate * self.shared_expert(hidden_states)


class Qwen2MoeForCausalLM(MoEForCausalLM):
    architectures = ("Qwen2MoeForCausalLM",)
    config_cls = Qwen2MoeConfig
    moe_cls = Qwen2MoE
