"""MiniCPM (arXiv:2404.06395, arXiv:2506.07900): a Granite whose multipliers follow from the sizes
of the small model that it was tuned as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from axion.models.config import Size
from axion.models.granite import GraniteConfig, GraniteForCausalLM


@dataclass(kw_only=True)
class MiniCPMConfig(GraniteConfig):
    """
    Attributes:
        scale_emb: factor on the embedding.
        scale_depth: factor on what each block adds, over the root of the number of layers.
        dim_model_base: logits are those of a model as wide as this.
        sparse_config: always None: MiniCPM 4's sparse attention is not computed here.
    """

    tie_word_embeddings: bool = True
    scale_emb: float = 1.0
    scale_depth: float = 1.0
    dim_model_base: Size = 1
    sparse_config: None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attention_multiplier = self.head_dim**-0.5
        self.embedding_multiplier = self.scale_emb
        self.residual_multiplier = self.scale_depth * self.num_hidden_layers**-0.5
        self.logits_scaling = self.hidden_size / self.dim_model_base

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        return derived, sources | {"mup_denominator"}  # of training


class MiniCPMForCausalLM(GraniteForCausalLM):
    architectures = ("MiniCPMForCausalLM",)
    config_cls = MiniCPMConfig
