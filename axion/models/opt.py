"""OPT (arXiv:2205.01068): learned positions, biases, ReLU without a gate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.embedding import Embedding
from axion.layers.linear import Linear
from axion.layers.norm import LayerNorm
from axion.models.base import Attention, CausalLM, Decoder, DecoderLayer, PlainMLP
from axion.models.config import DecoderConfig, Size

_FIRST_POSITION = 2


@dataclass(kw_only=True)
class OPTConfig(DecoderConfig):
    """
    Attributes:
        do_layer_norm_before: norms stand before attention and MLP, else behind their residuals.
        word_embed_proj_dim: size of an embedding, projected to and from `hidden_size` (the
            default).
    """

    renamed_fields = (("ffn_dim", "intermediate_size"), ("activation_function", "hidden_act"))

    hidden_act: str = "relu"
    tie_word_embeddings: bool = True
    enable_bias: bool = True
    do_layer_norm_before: bool = True
    layer_norm_elementwise_affine: bool = True
    word_embed_proj_dim: Size | None = None
    _remove_final_layer_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attention_bias = self.mlp_bias = self.enable_bias
        if self.word_embed_proj_dim is None:
            self.word_embed_proj_dim = self.hidden_size

    def norm(self) -> nn.Module:
        affine = self.layer_norm_elementwise_affine
        return LayerNorm(self.hidden_size, elementwise_affine=affine)


class OPTAttention(Attention):
    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return q, k


class OPTDecoderLayer(DecoderLayer):
    def __init__(
        self, config: OPTConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.is_pre_norm = config.do_layer_norm_before

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        if self.is_pre_norm:
            return super().forward(hidden_states, context)
        out = self.self_attn(hidden_states, context)
        hidden_states = self.input_layernorm(hidden_states + out)
        return self.post_attention_layernorm(hidden_states + self.mlp(hidden_states))


class OPTDecoder(Decoder):
    def __init__(self, config: OPTConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        size, embedding_size = config.hidden_size, config.word_embed_proj_dim
        self.embed_tokens = Embedding(config.vocab_size, embedding_size)
        num_positions = config.max_position_embeddings + _FIRST_POSITION
        self.embed_positions = Embedding(num_positions, size)
        self.project_in, self.project_out = nn.Identity(), nn.Identity()
        if embedding_size != size:
            self.project_in = Linear(embedding_size, size)
            self.project_out = Linear(size, embedding_size)
        if config._remove_final_layer_norm or not config.do_layer_norm_before:
            self.norm = nn.Identity()

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        return self.project_out(super().forward(input_ids, context))

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        positions = self.embed_positions(context.positions + _FIRST_POSITION)
        return self.project_in(super().embed(input_ids, context)) + positions


class OPTForCausalLM(CausalLM):
    architectures = ("OPTForCausalLM",)
    renamed_tensors = (
        (r"^(model\.)?decoder\.", "model."),
        (r"^model\.final_layer_norm\.", "model.norm."),
        (r"\.self_attn_layer_norm\.", ".input_layernorm."),
        (r"\.final_layer_norm\.", ".post_attention_layernorm."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.fc1\.", ".mlp.up_proj."),
        (r"\.fc2\.", ".mlp.down_proj."),
    )
    config_cls = OPTConfig
    attention_cls = OPTAttention
    mlp_cls = PlainMLP
    layer_cls = OPTDecoderLayer
    decoder_cls = OPTDecoder
    config: OPTConfig

    def head(self) -> Linear:
        return Linear(self.config.word_embed_proj_dim, self.config.vocab_size)
