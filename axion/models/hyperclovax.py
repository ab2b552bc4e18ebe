"""HyperCLOVA X SEED Think (NAVER, 2025): a Granite with norms behind attention and MLP too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from axion.models.granite import GraniteConfig, GraniteDecoderLayer, GraniteForCausalLM


@dataclass(kw_only=True)
class HyperCLOVAXConfig(GraniteConfig):
    """
    Attributes:
        attention_multiplier: 1 / sqrt(head_dim) by default.
        logits_scaling: multiplies the logits, where a Granite's divides them.
        use_post_norm: what attention and MLP return is normalised.
    """

    attention_multiplier: float | None = None  # type: ignore[assignment]
    use_post_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_multiplier is None:
            self.attention_multiplier = self.head_dim**-0.5

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        scaling = config.get("logits_scaling", 1.0)
        if isinstance(scaling, int | float) and scaling:
            derived["logits_scaling"] = 1 / scaling
        return derived, sources


class HyperCLOVAXDecoderLayer(GraniteDecoderLayer):
    def __init__(
        self, config: HyperCLOVAXConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.post_norm1 = config.norm() if config.use_post_norm else nn.Identity()
        self.post_norm2 = config.norm() if config.use_post_norm else nn.Identity()

    def after_attention(self, out: Tensor) -> Tensor:
        return super().after_attention(self.post_norm1(out))

    def after_mlp(self, out: Tensor) -> Tensor:
        return super().after_mlp(self.post_norm2(out))


class HyperCLOVAXForCausalLM(GraniteForCausalLM):
    architectures = ("HyperCLOVAXForCausalLM",)
    config_cls = HyperCLOVAXConfig
    layer_cls = HyperCLOVAXDecoderLayer
