"""Kimi Linear (arXiv:2510.26692): most layers are Kimi delta attention, a Gated DeltaNet whose
state fades in each channel at a rate of its own; the others are latent attention without
positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import get_activation
from axion.layers.context import ForwardContext
from axion.layers.conv import PackedConv1d
from axion.layers.linear import Linear, PackedLinear
from axion.layers.norm import SigmoidGatedRMSNorm
from axion.layers.rotary import Length
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig, Projected
from axion.models.hybrid import HybridForCausalLM, num_layers
from axion.models.mla import MLA, MLAConfig
from axion.models.moe import SharedMoEForCausalLM

# What `linear_attn_config` calls the sizes of Kimi delta attention.
_SIZES = {
    "head_dim": "linear_key_head_dim",
    "num_heads": "linear_num_key_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
_KINDS = {"full_attn_layers": "full_attention", "kda_layers": "linear_attention"}


@dataclass(kw_only=True)
class KimiLinearConfig(GatedDeltaNetConfig, MLAConfig):
    """
    Attributes:
        moe_router_activation_func, use_grouped_topk: the router is DeepSeek-V3's.
        mla_use_nope: latent attention has no positions.
    """

    renamed_fields = (
        ("model_max_length", "max_position_embeddings"),
        ("moe_renormalize", "norm_topk_prob"),
        ("num_expert_group", "n_group"),
        ("num_experts_per_token", "num_experts_per_tok"),
        ("num_shared_experts", "n_shared_experts"),
        ("linear_head_dim", "linear_key_head_dim"),
        ("linear_num_heads", "linear_num_key_heads"),
    )

    max_position_embeddings: Length = 1048576
    rms_norm_eps: Epsilon = 1e-5
    q_lora_rank: Size | None = None
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 1024
    first_k_dense_replace: Index = 1
    n_group: NumExperts | None = 1
    topk_group: NumExperts | None = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.446
    moe_router_activation_func: Literal["sigmoid"] = "sigmoid"
    use_grouped_topk: Literal[True] = True
    mla_use_nope: Literal[True] = True
    linear_num_key_heads: Size = 32

    def __post_init__(self) -> None:
        self.linear_num_value_heads = self.linear_num_key_heads
        self.linear_value_head_dim = self.linear_key_head_dim
        super().__post_init__()

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Checkpoints have an object `linear_attn_config`, whose layers are counted from 1; what
        transformers writes has neither."""
        derived, sources = super()._derive(config)
        linear = config.get("linear_attn_config") or {}
        if not isinstance(linear, dict) or not linear.keys() <= _SIZES.keys() | _KINDS.keys():
            raise ModelLoadError(
                "config.json: linear_attn_config must be an object of "
                f"{', '.join([*_SIZES, *_KINDS])}, got {str(linear)[:200]}."
            )
        derived |= {name: linear[key] for key, name in _SIZES.items() if key in linear}
        if config.get("layer_types") is None:
            count = num_layers(config)
            kinds: list[str | None] = [
                "linear_attention" if i % 4 or not i else "full_attention" for i in range(count)
            ]
            if _KINDS.keys() <= linear.keys():
                kinds = [
                    next((_KINDS[name] for name in _KINDS if i + 1 in list(linear[name])), None)
                    for i in range(count)
                ]
            derived["layer_types"] = kinds
        return derived, sources | {"linear_attn_config"}


class UnrotatedMLA(MLA):
    """Queries and keys have no positions: the other layers know the order."""

    def __init__(self, config: KimiLinearConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self.rotary_emb
        self.scale = self.head_dim**-0.5

    def rotate(self, x: Tensor, context: ForwardContext) -> Tensor:
        return x


class KimiDeltaAttention(GatedDeltaNet):
    """What a channel fades by, and what the outputs pass, are made through narrow projections."""

    def __init__(self, config: KimiLinearConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        num_heads, size = config.linear_num_key_heads, self.key_size
        self.in_proj = PackedLinear(
            config.hidden_size,
            {
                **{"q_proj": size, "k_proj": size, "v_proj": size},
                **{"g_a_proj": self.k_dim, "b_proj": num_heads, "f_a_proj": self.k_dim},
            },
        )
        self.g_b_proj = Linear(self.k_dim, size)
        self.f_b_proj = Linear(self.k_dim, size)
        self.conv1d = PackedConv1d(
            {"q_conv1d": size, "k_conv1d": size, "v_conv1d": size},
            config.linear_conv_kernel_dim,
            get_activation(config.hidden_act),
        )
        self.dt_bias = nn.Parameter(torch.empty(size), requires_grad=False)
        self.A_log = nn.Parameter(torch.empty(1, 1, num_heads, 1), requires_grad=False)
        self.norm = SigmoidGatedRMSNorm(self.k_dim, config.rms_norm_eps)

    def log_decay(self, decay: Tensor) -> Tensor:
        step = F.softplus(decay.float() + self.dt_bias).unflatten(-1, (-1, self.k_dim))
        return -self.A_log[0].float().exp() * step

    def project(self, hidden_states: Tensor) -> Projected:
        q, k, v, gate, beta, decay = self.in_proj(hidden_states)
        qkv = torch.cat((q, k, v), dim=-1)
        return Projected(qkv, self.g_b_proj(gate), beta, self.f_b_proj(decay))


class KimiLinearForCausalLM(HybridForCausalLM, SharedMoEForCausalLM):
    architectures = ("KimiLinearForCausalLM",)
    renamed_tensors = (
        *SharedMoEForCausalLM.renamed_tensors,
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
        (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
        (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
        (r"\.self_attn\.o_norm\.", ".self_attn.norm."),
    )
    config_cls = KimiLinearConfig
    mixers = (("full_attention", UnrotatedMLA), ("linear_attention", KimiDeltaAttention))
    config: KimiLinearConfig
