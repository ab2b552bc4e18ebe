"""StarCoder2 (arXiv:2402.19173): biases, layer norms, an MLP without a gate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from axion.layers.norm import LayerNorm
from axion.layers.rotary import Length
from axion.models.base import CausalLM, PlainMLP
from axion.models.config import Epsilon, Size, WindowConfig


@dataclass(kw_only=True)
class Starcoder2Config(WindowConfig):
    num_key_value_heads: Size | None = 2
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: Length = 4096
    norm_epsilon: Epsilon = 1e-5
    use_bias: bool = True
    tie_word_embeddings: bool = True
    sliding_window: Size | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attention_bias = self.mlp_bias = self.use_bias

    def norm(self) -> nn.Module:
        return LayerNorm(self.hidden_size, self.norm_epsilon)


class Starcoder2ForCausalLM(CausalLM):
    architectures = ("Starcoder2ForCausalLM",)
    renamed_tensors = (
        (r"\.c_fc\.", ".up_proj."),
        (r"\.c_proj\.", ".down_proj."),
        *CausalLM.renamed_tensors,
    )
    config_cls = Starcoder2Config
    mlp_cls = PlainMLP
