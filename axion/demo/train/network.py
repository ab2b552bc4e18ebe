"""The Llama network that the trainer trains, with the parameter names of the checkpoint.

It computes what transformers' `LlamaForCausalLM` computes, but it can keep conversations that
share a row apart, and for short rows it takes the faster of two ways to attend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# PyTorch's fused attention only pays on a CPU when rows are longer than this.
_MATMUL_ATTENTION_LIMIT = 256


@dataclass(frozen=True)
class NetworkConfig:
    """The network's sizes, under the names that `config.json` gives them."""

    vocab_size: int = 768
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class Norm(nn.Module):
    """Root-mean-square normalisation."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Causal attention with rotary positions and shared key and value heads."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = _rotate(self.q_proj(x).view(heads), *rotation).transpose(1, 2)
        k = _rotate(self.k_proj(x).view(heads), *rotation).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        if bias is None:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2) + bias
            # Autocast would compute this in float32, which costs more than the matrix products.
            y = torch.softmax(scores, -1, dtype=scores.dtype) @ v
        return self.o_proj(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """A gated two-layer network."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], bias: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Network(nn.Module):
    """A Llama model whose output layer is its embedding."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        deep = (2 * config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 * (deep if into_stream else 1.0))

    def forward(self, tokens: Tensor, documents: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of the labelled positions.

        Args:
            tokens: Token ids, one row after another.
            documents: The number of the conversation that each token belongs to. Tokens of short
                rows attend within their conversation, those of long rows to all before them.
            labels: The token that should follow, or -100 where it does not matter.
        """
        length = tokens.shape[1]
        rotation = _rotation(self.config, length)
        bias = _within(documents) if length <= _MATMUL_ATTENTION_LIMIT else None
        x = self.embed_tokens(tokens).to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x, rotation, bias)
        chosen = labels >= 0
        logits = functional.linear(self.norm(x[chosen]), self.embed_tokens.weight)
        return functional.cross_entropy(logits.float(), labels[chosen])


def _rotation(config: NetworkConfig, length: int) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
    angles = torch.outer(torch.arange(length), config.rope_theta**-exponents)[:, None]
    return angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def _within(documents: Tensor) -> Tensor:
    """Zero where a token may attend to another, minus infinity elsewhere."""
    length = documents.shape[1]
    same = documents[:, :, None] == documents[:, None, :]
    allowed = same & torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(allowed.shape, dtype=torch.bfloat16)
    return bias.masked_fill_(~allowed, float("-inf"))[:, None]
