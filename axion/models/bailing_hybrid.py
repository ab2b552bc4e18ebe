"""Ling 3 (inclusionAI, 2026): Kimi Linear's layers, with positions and a gate for each head in
latent attention, and a bounded rate at which states fade."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.linear import Linear, PackedLinear
from axion.layers.rotary import Length
from axion.models.config import Epsilon, Index, NumExperts, Size
from axion.models.gated_delta_net import Projected
from axion.models.hybrid import num_layers, whole_number
from axion.models.kimi_delta_attention import KimiDeltaAttention
from axion.models.kimi_linear import KimiLinearConfig, KimiLinearForCausalLM
from axion.models.mla import MLA


@dataclass(kw_only=True)
class BailingHybridConfig(KimiLinearConfig):
    """
    Attributes:
        kda_safe_gate: the logarithm of what a state keeps of itself is not below
            `kda_lower_bound`.
    """

    renamed_fields = (
        *KimiLinearConfig.renamed_fields,
        ("num_mtp_layers", "num_nextn_predict_layers"),
        ("short_conv_kernel_size", "linear_conv_kernel_dim"),
    )

    default_rope_theta = 6_000_000.0

    max_position_embeddings: Length = 262_144
    rms_norm_eps: Epsilon = 1e-6
    num_experts: NumExperts = 512
    moe_intermediate_size: Size = 768
    first_k_dense_replace: Index = 2
    n_group: NumExperts | None = 8
    topk_group: NumExperts | None = 4
    routed_scaling_factor: float = 2.5
    num_nextn_predict_layers: Index = 1
    kda_safe_gate: bool = True
    kda_lower_bound: float = -5.0

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        if "linear_num_key_heads" not in config:
            derived["linear_num_key_heads"] = config.get("num_attention_heads", 0)
        # transformers calls the rotated part of a head in latent attention head_dim, once it has
        # read of delta attention what checkpoints call so.
        if "linear_key_head_dim" not in config:
            derived["linear_key_head_dim"] = config.get("head_dim", 128)
        derived["head_dim"] = None
        group = whole_number(config, "layer_group_size", 6) or 6
        if config.get("layer_types") is None:
            derived["layer_types"] = [
                "linear_attention" if (i + 1) % group else "full_attention"
                for i in range(num_layers(config))
            ]
        return derived, sources | {"layer_group_size", "mtp_loss_scaling_factor"}


class GatedMLA(MLA):
    """What each head returns passes a gate."""

    def __init__(self, config: BailingHybridConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.g_proj = Linear(config.hidden_size, config.num_attention_heads)

    def attend(
        self, q: Tensor, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Tensor:
        out = super().attend(q, q_latent, hidden_states, context)
        gate = self.g_proj(hidden_states).float().sigmoid().to(out.dtype)
        return out * gate[..., None]


class BailingDeltaAttention(KimiDeltaAttention):
    def __init__(self, config: BailingHybridConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        num_heads, size = config.linear_num_key_heads, self.key_size
        del self.g_b_proj, self.f_b_proj
        self.in_proj = PackedLinear(
            config.hidden_size,
            {
                **{"q_proj": size, "k_proj": size, "v_proj": size},
                **{"g_proj": size, "b_proj": num_heads, "f_proj": size},
            },
        )
        self.A_log = nn.Parameter(torch.empty(num_heads), requires_grad=False)
        self.lower_bound = config.kda_lower_bound if config.kda_safe_gate else None

    def log_decay(self, decay: Tensor) -> Tensor:
        step = (decay.float() + self.dt_bias).unflatten(-1, (-1, self.k_dim))
        rate = self.A_log.float().exp()[:, None]
        if self.lower_bound is None:
            return -rate * F.softplus(step)
        return self.lower_bound * (rate * step).sigmoid()

    def project(self, hidden_states: Tensor) -> Projected:
        q, k, v, gate, beta, decay = self.in_proj(hidden_states)
        return Projected(torch.cat((q, k, v), dim=-1), gate, beta, decay)


class BailingHybridForCausalLM(KimiLinearForCausalLM):
    architectures = ("BailingHybridForCausalLM",)
    renamed_tensors = (
        (r"^model\.word_embeddings\.", "model.embed_tokens."),
        (r"\.attention\.", ".self_attn."),
        (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
        (r"\.self_attn\.forget_gate\.", ".self_attn."),
        (r"\.mlp\.gate\.expert_bias$", ".mlp.gate.e_score_correction_bias"),
        *KimiLinearForCausalLM.renamed_tensors,
    )
    config_cls = BailingHybridConfig
    mixers = (("full_attention", GatedMLA), ("linear_attention", BailingDeltaAttention))
