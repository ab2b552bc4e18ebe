"""GPT-2 (Radford et al., 2019): learned positions, fused projections stored transposed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.embedding import Embedding
from axion.layers.linear import TransposedLinear
from axion.layers.rotary import Length
from axion.models.base import Attention, CausalLM, Decoder, PlainMLP
from axion.models.config import GPTConfig


@dataclass(kw_only=True)
class GPT2Config(GPTConfig):
    max_position_embeddings: Length = 1024
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True


class GPT2Attention(Attention):
    def __init__(self, config: GPT2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        size = config.hidden_size
        self.qkv_proj = TransposedLinear(size, self.qkv_proj.out_features, bias=True)
        self.o_proj = TransposedLinear(size, size, bias=True)
        if not config.scale_attn_weights:
            self.scale = 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer_idx + 1

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv_proj(hidden_states).unflatten(-1, (3, -1, self.head_dim)).unbind(-3)
        return q, k, v

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return q, k


class GPT2MLP(PlainMLP):
    def __init__(self, config: GPT2Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        hidden_size, size = config.hidden_size, config.intermediate_size
        self.up_proj = TransposedLinear(hidden_size, size, bias=True)
        self.down_proj = TransposedLinear(size, hidden_size, bias=True)


class GPT2Decoder(Decoder):
    def __init__(self, config: GPT2Config, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size)

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        return super().embed(input_ids, context) + self.embed_positions(context.positions)


class GPT2LMHeadModel(CausalLM):
    architectures = ("GPT2LMHeadModel",)
    renamed_tensors = (
        (r"^(transformer\.)?wte\.", "model.embed_tokens."),
        (r"^(transformer\.)?wpe\.", "model.embed_positions."),
        (r"^(transformer\.)?ln_f\.", "model.norm."),
        (r"^(transformer\.)?h\.", "model.layers."),
        (r"\.ln_1\.", ".input_layernorm."),
        (r"\.ln_2\.", ".post_attention_layernorm."),
        (r"\.attn\.c_attn\.", ".self_attn.qkv_proj."),
        (r"\.attn\.c_proj\.", ".self_attn.o_proj."),
        (r"\.mlp\.c_fc\.", ".mlp.up_proj."),
        (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
    )
    ignored_tensors = (r".*\.attn\.(bias|masked_bias)",)
    config_cls = GPT2Config
    attention_cls = GPT2Attention
    mlp_cls = GPT2MLP
    decoder_cls = GPT2Decoder
