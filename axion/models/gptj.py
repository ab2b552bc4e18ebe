"""GPT-J (Wang and Komatsuzaki, 2021): attention and MLP beside each other, neighbours rotated as
pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from axion.layers.linear import Linear
from axion.layers.rotary import Length, apply_rotary_interleaved
from axion.models.base import Attention, CausalLM, ParallelDecoderLayer, PlainMLP
from axion.models.config import GPTConfig, Size


@dataclass(kw_only=True)
class GPTJConfig(GPTConfig):
    max_position_embeddings: Length = 2048
    rotary_dim: Size = 64
    mlp_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim must not be above head_dim ({self.head_dim})")
        # The half outlives the division's rounding; what is left of it is cut off.
        factor = min(1.0, (self.rotary_dim + 0.5) / self.head_dim)
        self.rope_parameters = replace(self.rope_parameters, partial_rotary_factor=factor)


class GPTJAttention(Attention):
    apply_rotary = staticmethod(apply_rotary_interleaved)


class GPTJForCausalLM(CausalLM):
    architectures = ("GPTJForCausalLM",)
    renamed_tensors = (
        (r"^(transformer\.)?wte\.", "model.embed_tokens."),
        (r"^(transformer\.)?ln_f\.", "model.norm."),
        (r"^(transformer\.)?h\.", "model.layers."),
        (r"\.ln_1\.", ".input_layernorm."),
        (r"\.attn\.", ".self_attn."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.fc_in\.", ".up_proj."),
        (r"\.fc_out\.", ".down_proj."),
    )
    ignored_tensors = (r".*\.self_attn\.(bias|masked_bias|embed_positions)",)
    config_cls = GPTJConfig
    attention_cls = GPTJAttention
    mlp_cls = PlainMLP
    layer_cls = ParallelDecoderLayer

    def head(self) -> Linear:
        return Linear(self.config.hidden_size, self.config.vocab_size, bias=True)
