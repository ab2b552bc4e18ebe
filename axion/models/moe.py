"""The standard decoder with a mixture of experts for MLP. An architecture is this, and what it
overrides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import clamp_gate, get_activation
from axion.layers.moe import Experts, Router, SigmoidRouter
from axion.models.base import MLP, CausalLM
from axion.models.config import DecoderConfig, Index, NumExperts, Size

_NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(kw_only=True)
class MoEConfig(DecoderConfig):
    """The fields that every mixture of experts has.

    Attributes:
        num_experts: `num_experts`, `num_local_experts` or `n_routed_experts` in config.json.
        moe_intermediate_size: width of one expert; `intermediate_size` by default.
        norm_topk_prob: see `axion.layers.moe.Router`.
    """

    num_experts: NumExperts
    num_experts_per_tok: NumExperts
    moe_intermediate_size: Size | None = None
    norm_topk_prob: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moe_intermediate_size is None:
            self.moe_intermediate_size = self.intermediate_size
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must not be above the number "
                f"of experts ({self.num_experts})"
            )

    def is_sparse(self, layer_idx: int) -> bool:
        """Whether the layer has experts, and not one MLP of `intermediate_size`."""
        return True

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        found = {name: config[name] for name in _NUM_EXPERTS if config.get(name) is not None}
        values = list(found.values())
        if any(value != values[0] for value in values):
            raise ModelLoadError(
                f"config.json: {' and '.join(found)} mean the same and differ: {values}."
            )
        if values:
            derived["num_experts"] = values[0]
        return derived, sources | set(_NUM_EXPERTS)


class MoE(nn.Module):
    """A router and its experts."""

    def __init__(self, config: MoEConfig, layer_idx: int) -> None:
        super().__init__()
        self.gate = self.router(config)
        self.experts = self.build_experts(config)

    def router(self, config: MoEConfig) -> Router:
        return Router(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
        )

    def build_experts(self, config: MoEConfig) -> Experts:
        return Experts(
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            get_activation(config.hidden_act),
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        return self.experts(hidden_states, *self.gate(hidden_states))


class MoEForCausalLM(CausalLM):
    """A decoder with experts in the layers for which its configuration says so."""

    renamed_tensors = (
        *CausalLM.renamed_tensors,
        (r"\.experts\.(gate_up|down)_proj$", r".experts.\1_proj.weight"),
        (r"\.experts\.(gate_up|down)_proj_(\w+)$", r".experts.\1_proj.\2"),
    )
    config_cls: ClassVar[type[DecoderConfig]] = MoEConfig
    moe_cls: ClassVar[type[MoE]] = MoE
    config: MoEConfig

    def mlp(self, layer_idx: int) -> nn.Module:
        is_sparse = self.config.is_sparse(layer_idx)
        return self.moe_cls(self.config, layer_idx) if is_sparse else super().mlp(layer_idx)


@dataclass(kw_only=True)
class SharedMoEConfig(MoEConfig):
    """What DeepSeek's mixtures of experts have, and those made after them.

    Attributes:
        n_shared_experts: experts that every token passes, stored as one MLP.
        first_k_dense_replace: the first layers, so many, have an MLP instead of experts.
        mlp_layer_types: says of each layer which it has, in place of that; its default.
        n_group, topk_group: experts are chosen from so many of the groups.
        num_nextn_predict_layers: layers behind the last, which guess more tokens; not read.
    """

    moe_intermediate_size: Size
    n_shared_experts: NumExperts = 1
    first_k_dense_replace: Index = 0
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None
    n_group: NumExperts | None = None
    topk_group: NumExperts | None = None
    routed_scaling_factor: float = 1.0
    num_nextn_predict_layers: Index = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_layer_types is None:
            num_dense = min(self.first_k_dense_replace, self.num_hidden_layers)
            num_sparse = self.num_hidden_layers - num_dense
            self.mlp_layer_types = ["dense"] * num_dense + ["sparse"] * num_sparse
        if len(self.mlp_layer_types) != self.num_hidden_layers:
            raise ValueError(f"mlp_layer_types must name {self.num_hidden_layers} layers")
        self.n_group, self.topk_group = self.n_group or 1, self.topk_group or 1
        if self.num_experts % self.n_group or self.topk_group > self.n_group:
            raise ValueError(
                f"n_group ({self.n_group}) must divide n_routed_experts ({self.num_experts}), and "
                f"topk_group ({self.topk_group}) must not be above it"
            )
        group_size = self.num_experts // self.n_group
        if self.n_group > 1 and group_size < 2:
            raise ValueError(f"n_group ({self.n_group}) leaves groups of less than two experts")
        if self.num_experts_per_tok > self.topk_group * group_size:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must not be above the "
                f"{self.topk_group * group_size} experts of topk_group ({self.topk_group}) groups"
            )

    def is_sparse(self, layer_idx: int) -> bool:
        return self.mlp_layer_types[layer_idx] == "sparse"


class ClampedMLP(MLP):
    """Gates are clamped, and what they multiply, by the configuration's `swiglu_limit`."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.limit: float = config.swiglu_limit

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        return super().activate(*clamp_gate(gate, up, self.limit))


class SharedMoE(MoE):
    """Beside the experts that are chosen there are some that every token passes (DeepSeekMoE,
    arXiv:2401.06066)."""

    router_cls: ClassVar[type[SigmoidRouter]] = SigmoidRouter
    mlp_cls: ClassVar[type[MLP]] = MLP

    def __init__(self, config: SharedMoEConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        shared_size = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = self.mlp_cls(
            replace(config, intermediate_size=shared_size), layer_idx
        )

    def router(self, config: SharedMoEConfig) -> Router:  # type: ignore[override]
        return self.router_cls(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
            num_groups=config.n_group,
            top_k_groups=config.topk_group,
            scaling_factor=config.routed_scaling_factor,
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + self.shared_experts(hidden_states)


class SharedMoEForCausalLM(MoEForCausalLM):
    config_cls = SharedMoEConfig
    moe_cls = SharedMoE
    config: SharedMoEConfig

    def __init__(self, config: SharedMoEConfig) -> None:
        super().__init__(config)
        self.ignored_tensors += tensors_behind(
            config.num_hidden_layers, config.num_nextn_predict_layers
        )


def tensors_behind(num_layers: int, num_more: int) -> tuple[str, ...]:
    """Patterns of the tensors of so many layers behind the last, which guess more tokens."""
    return tuple(rf"model\.layers\.{num_layers + i}\..*" for i in range(num_more))
