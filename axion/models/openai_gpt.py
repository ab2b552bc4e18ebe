"""GPT (Radford et al., 2018): a GPT-2 with norms behind attention and MLP, and none at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.rotary import Length
from axion.models.base import DecoderLayer
from axion.models.gpt2 import GPT2Config, GPT2Decoder, GPT2LMHeadModel


@dataclass(kw_only=True)
class OpenAIGPTConfig(GPT2Config):
    renamed_fields = (*GPT2Config.renamed_fields, ("afn", "hidden_act"))

    max_position_embeddings: Length = 512

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        # The MLP's width is no field.
        derived, sources = super()._derive(config | {"intermediate_size": None})
        # The function is the approximation by tanh, of which GPT-2 has the name.
        if config.get("hidden_act", "gelu") == "gelu":
            derived["hidden_act"] = "gelu_new"
        return derived, sources


class OpenAIGPTDecoderLayer(DecoderLayer):
    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        attended = self.self_attn(hidden_states, context)
        hidden_states = self.input_layernorm(hidden_states + attended)
        return self.post_attention_layernorm(hidden_states + self.mlp(hidden_states))


class OpenAIGPTDecoder(GPT2Decoder):
    def __init__(self, config: OpenAIGPTConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.norm = nn.Identity()


class OpenAIGPTLMHeadModel(GPT2LMHeadModel):
    architectures = ("OpenAIGPTLMHeadModel",)
    renamed_tensors = (
        (r"^(transformer\.)?tokens_embed\.", "model.embed_tokens."),
        (r"^(transformer\.)?positions_embed\.", "model.embed_positions."),
        *GPT2LMHeadModel.renamed_tensors,
    )
    config_cls = OpenAIGPTConfig
    layer_cls = OpenAIGPTDecoderLayer
    decoder_cls = OpenAIGPTDecoder
