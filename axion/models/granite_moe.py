"""Granite 3 MoE (IBM, 2024): a Granite with experts, and with a shared one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from axion.models.base import MLP
from axion.models.config import Index, NumExperts
from axion.models.granite import GraniteConfig, GraniteForCausalLM
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM


@dataclass(kw_only=True)
class GraniteMoeConfig(GraniteConfig, MoEConfig):
    num_experts: NumExperts = 8
    num_experts_per_tok: NumExperts = 2
    norm_topk_prob: bool = True


class GraniteMoeForCausalLM(MoEForCausalLM, GraniteForCausalLM):
    architectures = ("GraniteMoeForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"\.mlp\.router\.(layer\.)?", ".mlp.gate."),
        (r"\.mlp\.input_linear\.", ".mlp.experts.gate_up_proj."),
        (r"\.mlp\.output_linear\.", ".mlp.experts.down_proj."),
    )
    config_cls = GraniteMoeConfig
    config: GraniteMoeConfig


@dataclass(kw_only=True)
class GraniteMoeSharedConfig(GraniteMoeConfig):
    """
    Attributes:
        shared_intermediate_size: width of the shared expert; 0: there is none.
    """

    shared_intermediate_size: Index = 0


class GraniteMoEShared(MoE):
    def __init__(self, config: GraniteMoeSharedConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        shared_config = replace(config, intermediate_size=config.shared_intermediate_size)
        self.shared_expert = MLP(shared_config, layer_idx)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.shared_expert(hidden_states)


class GraniteMoeSharedForCausalLM(GraniteMoeForCausalLM):
    architectures = ("GraniteMoeSharedForCausalLM",)
    renamed_tensors = (
        *GraniteMoeForCausalLM.renamed_tensors,
        (r"\.shared_mlp\.input_linear\.", ".mlp.shared_expert.gate_up_proj."),
        (r"\.shared_mlp\.output_linear\.", ".mlp.shared_expert.down_proj."),
    )
    config_cls = GraniteMoeSharedConfig
    config: GraniteMoeSharedConfig

    @property
    def moe_cls(self) -> type[MoE]:
        return GraniteMoEShared if self.config.shared_intermediate_size else MoE
