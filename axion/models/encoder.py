"""The standard post-norm encoder (BERT, arXiv:1810.04805). An architecture is this, and what it
overrides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from axion.layers.activation import get_activation
from axion.layers.attention import full_attention
from axion.layers.context import ForwardContext, KVCacheSpec, StateSpec
from axion.layers.embedding import Embedding
from axion.layers.linear import Linear, PackedLinear
from axion.models.config import BaseConfig, Epsilon, NumLayers, Size


@dataclass(kw_only=True)
class EncoderConfig(BaseConfig):
    """The fields that a standard encoder honours; a family adds its own."""

    vocab_size: Size = 30522
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: NumLayers = 12
    num_attention_heads: Size = 12
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    layer_norm_eps: Epsilon = 1e-12
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: bool = False

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.is_decoder:
            raise ValueError("is_decoder=true is not supported for this architecture")


class Embeddings(nn.Module):
    """What a token is, where it stands, and that it is of the first segment, summed."""

    def __init__(self, config: EncoderConfig, first_position: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.first_position = first_position
        self.word_embeddings = Embedding(config.vocab_size, size)
        self.position_embeddings = Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, config.layer_norm_eps)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        hidden_states = self.word_embeddings(input_ids)
        hidden_states += self.position_embeddings(context.positions + self.first_position)
        hidden_states += self.token_type_embeddings.weight[0]
        return self.LayerNorm(hidden_states)


class SelfAttention(nn.Module):
    """Every token attends to the whole of its sequence."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_dim = size // config.num_attention_heads
        self.qkv = PackedLinear(size, {"query": size, "key": size, "value": size}, bias=True)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv(hidden_states))
        return full_attention(q, k, v, context, scale=self.head_dim**-0.5).flatten(1)


class Output(nn.Module):
    """The end of a block: a projection, the residual connection, the norm."""

    def __init__(self, in_features: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size, bias=True)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Output(config.hidden_size, config)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        return self.output(self.self(hidden_states, context), hidden_states)


class Intermediate(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.activation = get_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_states))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with its norm behind it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        hidden_states = self.attention(hidden_states, context)
        return self.output(self.intermediate(hidden_states), hidden_states)


class Encoder(nn.Module):
    """Texts to one vector for each token. Only ever an embedding model: it writes nothing.

    The modules carry the names that a Hugging Face checkpoint gives their parameters.

    Attributes:
        architectures: the names in config.json's `architectures` that this class serves.
        renamed_tensors: pattern and replacement for names that differ from the modules'.
        ignored_tensors: patterns, of names after that, of tensors that nobody reads: heads.
        default_pooling: what makes one vector of the tokens', where a model does not say.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    renamed_tensors: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(bert|roberta)\.", ""),
        (r"\.LayerNorm\.gamma$", ".LayerNorm.weight"),
        (r"\.LayerNorm\.beta$", ".LayerNorm.bias"),
    )
    ignored_tensors: ClassVar[tuple[str, ...]] = (
        r"embeddings\.(position_ids|token_type_ids)",
        r"(pooler|cls|lm_head)\..*",
    )
    default_pooling: ClassVar[str] = "mean"

    config_cls: ClassVar[type[EncoderConfig]] = EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config, self.first_position())
        layers = [EncoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def first_position(self) -> int:
        """Row of the first token's position embedding."""
        return 0

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """Every sequence of the flat batch, whole.

        Args:
            input_ids: `[num_tokens]`.

        Returns:
            Hidden states of the last layer, `[num_tokens, hidden_size]`.
        """
        hidden_states = self.embeddings(input_ids, context)
        for layer in self.encoder["layer"]:
            hidden_states = layer(hidden_states, context)
        return hidden_states

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and the hidden states."""
        return self.embeddings.word_embeddings.weight.dtype

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        """None: nothing is kept from one step to the next."""
        return []

    def state_specs(self) -> list[StateSpec]:
        """None, likewise."""
        return []

    def max_length(self) -> int:
        """Longest sequence that there are position embeddings for, in tokens."""
        return self.config.max_position_embeddings - self.first_position()
