"""Step 3.5 Flash (StepFun, 2026), and the text part of Step 3.7: layers with a window and without
have a rope and a number of heads of their own, heads have gates, and experts are DeepSeek-V3's."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import get_activation
from axion.layers.linear import Linear
from axion.layers.moe import ExpertLinear, Experts, Router, SigmoidRouter
from axion.layers.norm import OffsetRMSNorm
from axion.layers.rotary import Positive
from axion.models.base import MLP, Attention
from axion.models.config import Epsilon, Index, LocalRopeConfig, NumExperts, Size
from axion.models.fallback_config import read_config
from axion.models.moe import MoE, MoEConfig, MoEForCausalLM, tensors_behind


@dataclass(kw_only=True)
class Step3p5Config(LocalRopeConfig, MoEConfig):
    """What transformers makes of config.json, which has older names and lists for each layer.

    Attributes:
        num_sliding_attention_heads: heads of layers with a window; transformers writes them into
            `per_layer_config`.
        query_pre_attn_scalar: scores are divided by its root.
        share_expert_dim: width of the expert that every token passes.
        moe_router_scaling_factor: on the weights of experts.
        mlp_layer_types: whether a layer has experts.
        swiglu_limits: by which each layer's experts clamp what their gates let through, and what
            that multiplies, this on both sides; 0: by nothing.
        swiglu_limits_shared: the same of the expert that every token passes, and of MLPs.
        num_nextn_predict_layers: layers behind the last, which guess more tokens; not read.
    """

    max_position_embeddings: Size = 128_000
    rms_norm_eps: Epsilon = 1e-5
    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128
    sliding_window: Size | None = None
    num_sliding_attention_heads: Size
    query_pre_attn_scalar: Positive
    num_experts_per_tok: NumExperts = 8
    moe_intermediate_size: Size = 1280
    share_expert_dim: Size = 1280
    norm_topk_prob: Literal[True] = True  # type: ignore[assignment]
    moe_router_scaling_factor: float = 1.0
    moe_router_activation: Literal["sigmoid"] = "sigmoid"
    norm_expert_weight: Literal[True] = True
    use_moe_router_bias: Literal[True] = True
    use_head_wise_attn_gate: Literal[True] = True
    use_qk_norm: Literal[True] = True
    sink: Literal[False] = False
    yarn_only_types: list[Literal["full_attention"]] | None = None
    mlp_layer_types: list[Literal["dense", "sparse"]]
    swiglu_limits: list[float | None] | None = None
    swiglu_limits_shared: list[float | None] | None = None
    num_nextn_predict_layers: Index = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.num_hidden_layers
        for name in ("mlp_layer_types", "swiglu_limits", "swiglu_limits_shared"):
            if (values := getattr(self, name)) is not None and len(values) != count:
                raise ValueError(f"{name} must have an entry for each of the {count} layers")

    def norm(self) -> nn.Module:
        return OffsetRMSNorm(self.hidden_size, self.rms_norm_eps)

    def is_sparse(self, layer_idx: int) -> bool:
        return self.mlp_layer_types[layer_idx] == "sparse"

    def of_layer(self, layer_idx: int) -> Step3p5Config:
        """The same with the number of the layer's heads."""
        own = copy(self)
        if self.is_sliding(layer_idx):
            own.num_attention_heads = self.num_sliding_attention_heads
        return own

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Step3p5Config:
        from transformers import Step3p7TextConfig

        return super().from_dict(read_config(Step3p7TextConfig, config).to_dict())

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        of_layers = {str(layer): dict(own) for layer, own in config["per_layer_config"].items()}
        sliding = {str(i) for i, x in enumerate(config["layer_types"]) if x == "sliding_attention"}
        heads = {own.pop("num_attention_heads", None) for own in of_layers.values()}
        heads = heads or {config["num_attention_heads"]}
        if of_layers.keys() not in (set(), sliding) or any(of_layers.values()) or len(heads) > 1:
            raise ModelLoadError(
                "config.json: per_layer_config must say num_attention_heads of the layers that are "
                "sliding_attention, and the same of all."
            )
        [derived["num_sliding_attention_heads"]] = heads
        return derived, sources | {"per_layer_config", "mtp_layer_types", "mtp_mlp_layer_types"}


class Step3p5Attention(Attention):
    def __init__(self, config: Step3p5Config, layer_idx: int) -> None:
        own = config.of_layer(layer_idx)
        super().__init__(own, layer_idx)
        self.scale = config.query_pre_attn_scalar**-0.5
        self.q_norm = OffsetRMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = OffsetRMSNorm(config.head_dim, config.rms_norm_eps)
        self.g_proj = Linear(config.hidden_size, own.num_attention_heads)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)

    def gate_heads(self, out: Tensor, hidden_states: Tensor) -> Tensor:
        return out * self.g_proj(hidden_states).sigmoid()[..., None]


class Step3p5MLP(MLP):
    def __init__(self, config: Step3p5Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.limit = _limit(config.swiglu_limits_shared, layer_idx)

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        return _clamped(self.activation(gate), up, self.limit)


class StackedLinear(ExpertLinear):
    """A checkpoint stores each projection apart: `gate_proj.weight` of all experts, and so on."""

    def shard_views(self) -> dict[str, Tensor]:
        parts = self.weight.detach().split(tuple(self.shards.values()), dim=1)
        return {f"{name}.weight": part for name, part in zip(self.shards, parts, strict=True)}


class Step3p5Experts(Experts):
    def __init__(self, config: Step3p5Config, layer_idx: int) -> None:
        num_experts, size = config.num_experts, config.moe_intermediate_size
        super().__init__(num_experts, config.hidden_size, size, get_activation(config.hidden_act))
        shards = self.gate_up_proj.shards
        self.gate_up_proj = StackedLinear(num_experts, config.hidden_size, shards)
        self.limit = _limit(config.swiglu_limits, layer_idx)

    def activate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return _clamped(self.activation(gate), up, self.limit)


def _limit(limits: list[float | None] | None, layer_idx: int) -> float:
    return (limits[layer_idx] if limits else None) or float("inf")


def _clamped(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return gate.clamp(max=limit) * up.clamp(-limit, limit)


class Step3p5MoE(MoE):
    """Beside the experts that are chosen there is one that every token passes."""

    def __init__(self, config: Step3p5Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.experts = Step3p5Experts(config, layer_idx)
        own = copy(config)
        own.intermediate_size = config.share_expert_dim
        self.share_expert = Step3p5MLP(own, layer_idx)

    def router(self, config: Step3p5Config) -> Router:  # type: ignore[override]
        return SigmoidRouter(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=True,
            scaling_factor=config.moe_router_scaling_factor,
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.share_expert(hidden_states)


class Step3p5ForCausalLM(MoEForCausalLM):
    architectures = ("Step3p5ForCausalLM",)
    renamed_tensors = (
        *MoEForCausalLM.renamed_tensors,
        (r"\.moe\.gate\.", ".mlp.gate."),
        (r"\.moe\.router_bias$", ".mlp.gate.e_score_correction_bias"),
        (r"\.moe\.", ".mlp.experts."),
        (r"\.share_expert\.", ".mlp.share_expert."),
    )
    config_cls = Step3p5Config
    attention_cls = Step3p5Attention
    mlp_cls = Step3p5MLP
    moe_cls = Step3p5MoE
    config: Step3p5Config

    def __init__(self, config: Step3p5Config) -> None:
        super().__init__(config)
        self.ignored_tensors += tensors_behind(
            config.num_hidden_layers, config.num_nextn_predict_layers
        )
