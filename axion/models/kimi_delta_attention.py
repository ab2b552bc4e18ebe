"""Kimi delta attention (arXiv:2510.26692): a Gated DeltaNet whose state fades in each channel at a
rate of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import get_activation
from axion.layers.conv import PackedConv1d
from axion.layers.linear import Linear, PackedLinear
from axion.layers.norm import SigmoidGatedRMSNorm
from axion.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig, Projected
from axion.models.hybrid import num_layers

# Those of `linear_attn_config` that say which layers are of which kind, counted from 1.
_LISTS = ("full_attn_layers", "kda_layers")


@dataclass(kw_only=True)
class KimiDeltaConfig(GatedDeltaNetConfig):
    """The fields of Kimi delta attention, which has as many heads of values as of keys.

    Attributes:
        sizes: what `linear_attn_config` calls a field, and its name here.
        switches: what else a family reads in it.
        other_kind: what `layer_types` calls the layers that are not `linear_attention`.
    """

    renamed_fields = (
        ("linear_head_dim", "linear_key_head_dim"),
        ("linear_num_heads", "linear_num_key_heads"),
    )
    sizes: ClassVar[dict[str, str]] = {
        "head_dim": "linear_key_head_dim",
        "num_heads": "linear_num_key_heads",
        "short_conv_kernel_size": "linear_conv_kernel_dim",
    }
    switches: ClassVar[tuple[str, ...]] = ()
    other_kind: ClassVar[str] = "full_attention"

    def __post_init__(self) -> None:
        self.linear_num_value_heads = self.linear_num_key_heads
        self.linear_value_head_dim = self.linear_key_head_dim
        super().__post_init__()

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Checkpoints have an object `linear_attn_config`; what transformers writes has not."""
        derived, sources = super()._derive(config)
        linear = config.get("linear_attn_config") or {}
        names = [*cls.sizes, *cls.switches, *_LISTS]
        is_read = isinstance(linear, dict) and linear.keys() <= set(names)
        if not is_read or not all(isinstance(linear.get(name, []), list) for name in _LISTS):
            raise ModelLoadError(
                f"config.json: linear_attn_config must be an object of {', '.join(names)}, got "
                f"{str(linear)[:200]}."
            )
        derived |= {name: linear[key] for key, name in cls.sizes.items() if key in linear}
        if config.get("layer_types") is None:
            count = num_layers(config)
            kinds: list[str | None] = [
                "linear_attention" if cls.is_linear(i) else cls.other_kind for i in range(count)
            ]
            if linear.keys() >= set(_LISTS):
                kinds_by_list = zip(_LISTS, (cls.other_kind, "linear_attention"), strict=True)
                of_layers = [(linear[name], kind) for name, kind in kinds_by_list]
                kinds = [
                    next((kind for layers, kind in of_layers if i + 1 in layers), None)
                    for i in range(count)
                ]
            derived["layer_types"] = kinds
        return derived, sources | {"linear_attn_config"}

    @classmethod
    def is_linear(cls, layer_idx: int) -> bool:
        """Whether a layer is `linear_attention` where config.json does not say."""
        return layer_idx % 4 != 3


class KimiDeltaAttention(GatedDeltaNet):
    """What a channel fades by, and what the outputs pass, are made through narrow projections."""

    def __init__(self, config: KimiDeltaConfig, layer_idx: int) -> None:
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
