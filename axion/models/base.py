"""The standard pre-norm decoder. An architecture is this, and what it overrides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from axion.layers.activation import apply, apply_gate, get_activation
from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext, KVCacheSpec, StateSpec
from axion.layers.embedding import Embedding
from axion.layers.linear import Linear, PackedLinear
from axion.layers.norm import RMSNorm, add_and_norm
from axion.layers.rotary import apply_rotary, rotary_embedding
from axion.models.config import DecoderConfig


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key-value heads.

    Attributes:
        scale, window, chunk, softcap, sinks, alibi_slopes: as
            `axion.layers.attention.paged_attention` takes them.
        apply_rotary: which dimensions of a head are rotated as pairs.
    """

    chunk: int | None = None
    softcap: float | None = None
    sinks: Tensor | None
    alibi_slopes: Tensor | None
    apply_rotary: Callable[..., Tensor] = staticmethod(apply_rotary)

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.window = config.window(layer_idx)
        self.register_parameter("sinks", None)
        self.register_buffer("alibi_slopes", None, persistent=False)
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.kv_cache_spec = KVCacheSpec(
            config.num_key_value_heads, config.head_dim, config.head_dim, window=self.window
        )
        self.qkv_proj = PackedLinear(
            config.hidden_size,
            {"q_proj": query_size, "k_proj": key_size, "v_proj": key_size},
            bias=config.attention_bias,
        )
        self.o_proj = Linear(query_size, config.hidden_size, bias=config.output_bias)
        self.rotary_emb = rotary_embedding(config.rope(layer_idx), config.head_dim)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        q, k, v = self.project_qkv(hidden_states)
        q, k = self.normalize_qk(q, k)
        q, k = self.rotate_qk(q, k, context)
        out = paged_attention(
            q,
            k,
            v,
            context.kv_caches[self.layer_idx],
            context,
            scale=self.scale,
            window=self.window,
            chunk=self.chunk,
            softcap=self.softcap,
            sinks=self.sinks,
            alibi_slopes=self.alibi_slopes,
        )
        return self.o_proj(self.gate_heads(out, hidden_states).flatten(1))

    def gate_heads(self, out: Tensor, hidden_states: Tensor) -> Tensor:
        """What is made of the heads' results `[num_tokens, num_heads, head_dim]`."""
        return out

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[num_tokens, hidden_size]` to queries, keys and values, each
        `[num_tokens, num_heads, head_dim]`."""
        q, k, v = self.qkv_proj(hidden_states)
        shape = (len(hidden_states), -1, self.head_dim)
        return q.view(shape), k.view(shape), v.view(shape)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """What happens to queries and keys `[num_tokens, num_heads, head_dim]` before rotation."""
        return q, k

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """Give queries and keys `[num_tokens, num_heads, head_dim]` their positions."""
        cos, sin = self.rotary_emb(context, q.dtype)
        return self.apply_rotary(q, cos, sin), self.apply_rotary(k, cos, sin)


class HeadNormAttention(Attention):
    """Each head's queries and keys are normalised before they are rotated.

    Attributes:
        norm_cls: what normalises them.
    """

    norm_cls: ClassVar[type[RMSNorm]] = RMSNorm

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.q_norm = self.norm_cls(config.head_dim, config.rms_norm_eps)
        self.k_norm = self.norm_cls(config.head_dim, config.rms_norm_eps)

    def rotate_qk(self, q: Tensor, k: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary_emb(context, q.dtype)
        rotate = self.apply_rotary
        return rotate(q, cos, sin, self.q_norm), rotate(k, cos, sin, self.k_norm)


class MLP(nn.Module):
    """Gated feed-forward network (arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
        self.gate_up_proj = PackedLinear(
            hidden_size,
            {"gate_proj": intermediate_size, "up_proj": intermediate_size},
            bias=config.mlp_bias,
        )
        self.down_proj = Linear(intermediate_size, hidden_size, bias=config.mlp_bias)
        self.activation = get_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        return self.down_proj(self.activate(*self.gate_up_proj(hidden_states)))

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        """`[num_tokens, intermediate_size]` each to the same."""
        return apply_gate(self.activation, gate, up)


class PlainMLP(nn.Module):
    """Feed-forward network without a gate."""

    def __init__(self, config: DecoderConfig, layer_idx: int) -> None:
        super().__init__()
        hidden_size, intermediate_size = config.hidden_size, config.intermediate_size
        self.up_proj = Linear(hidden_size, intermediate_size, bias=config.mlp_bias)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=config.mlp_bias)
        self.activation = get_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        return self.down_proj(apply(self.activation, self.up_proj(hidden_states)))


class DecoderLayer(nn.Module):
    """Attention, then MLP, each behind a norm and beside a residual connection."""

    def __init__(
        self, config: DecoderConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = config.norm()
        self.post_attention_layernorm = config.norm()

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        attended = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states, normalized = add_and_norm(
            attended, hidden_states, self.post_attention_layernorm
        )
        return hidden_states + self.mlp(normalized)


class ParallelDecoderLayer(DecoderLayer):
    """Attention and MLP beside each other, behind one norm (GPT-J)."""

    def __init__(
        self, config: DecoderConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        del self.post_attention_layernorm

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        normalized = self.input_layernorm(hidden_states)
        return hidden_states + self.self_attn(normalized, context) + self.mlp(normalized)


class Decoder(nn.Module):
    """Embedding, layers and final norm; `model` in a checkpoint's names."""

    def __init__(self, config: DecoderConfig, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = config.norm()

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        hidden_states = context.each_step(partial(self.embed, input_ids))
        for layer in self.layers:
            hidden_states = layer(hidden_states, context)
        return self.norm(hidden_states)

    def embed(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens]` to what the first layer reads, `[num_tokens, hidden_size]`."""
        return self.embed_tokens(input_ids)


class CausalLM(nn.Module):
    """A decoder with a head over the vocabulary.

    The modules carry the names that a Hugging Face checkpoint gives their parameters, so no
    mapping exists. `axion.engine.loader` builds a model on the meta device and fills it.

    Attributes:
        architectures: the names in config.json's `architectures` that this class serves.
        renamed_tensors: pattern and replacement for names that differ from the modules'.
        ignored_tensors: patterns of tensors that checkpoints may hold and nobody reads.
        batch_dependence: why a token's bits are not the same in every batch; empty: they may be.
        default_pooling: what makes one vector of a text's, where an embedding model does not say.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    # As a decoder is stored that was saved without its head.
    renamed_tensors: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(?=(embed_tokens|layers|norm)\.)", "model."),
    )
    ignored_tensors: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    batch_dependence: ClassVar[str] = ""
    default_pooling: ClassVar[str] = "lasttoken"

    config_cls: ClassVar[type[DecoderConfig]] = DecoderConfig
    attention_cls: ClassVar[type[Attention]] = Attention
    mlp_cls: ClassVar[type[nn.Module]] = MLP
    layer_cls: ClassVar[type[DecoderLayer]] = DecoderLayer
    decoder_cls: ClassVar[type[Decoder]] = Decoder

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = self.decoder_cls(config, self.decoder_layers())
        self.lm_head = self.head()
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def decoder_layers(self) -> list[nn.Module]:
        """Build all layers; override where some share what they are made of."""
        return [self.layer(i) for i in range(self.config.num_hidden_layers)]

    def layer(self, layer_idx: int) -> DecoderLayer:
        """Build one layer; override where layers differ in kind."""
        mixer, mlp = self.mixer(layer_idx), self.mlp(layer_idx)
        return self.layer_cls(self.config, layer_idx, mixer, mlp)

    def mixer(self, layer_idx: int) -> nn.Module:
        """Build what a layer mixes tokens with."""
        return self.attention_cls(self.config, layer_idx)

    def mlp(self, layer_idx: int) -> nn.Module:
        """Build a layer's feed-forward network."""
        return self.mlp_cls(self.config, layer_idx)

    def head(self) -> Linear:
        """Build the projection onto the vocabulary."""
        return Linear(self.config.hidden_size, self.config.vocab_size)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """One step over the flat batch; keys and values go to `context.kv_caches`.

        Args:
            input_ids: `[num_tokens]`.

        Returns:
            Hidden states after the final norm, `[num_tokens, hidden_size]`.
        """
        return self.model(input_ids, context)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """`[n, hidden_size]` to `[n, vocab_size]`, for the rows that are sampled from."""
        return self.lm_head(hidden_states)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, the hidden states and the KV cache."""
        return self.model.embed_tokens.dtype

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        """What each layer needs of the KV cache."""
        return [layer.self_attn.kv_cache_spec for layer in self.model.layers]

    def state_specs(self) -> list[StateSpec]:
        """What each layer keeps of a sequence as a whole; empty: no layer keeps anything."""
        return []

    def attends_to_all_of(self, num_tokens: int) -> bool:
        """Whether a token attends to all of a sequence of so many tokens that its layers' windows
        hold, rather than to those that a layer chooses, or to compressed entries."""
        return True

    @property
    def can_rewind(self) -> bool:
        """Whether computed tokens can be taken back: all that is kept is in the KV cache."""
        return not any(self.state_specs())

    def max_length(self) -> int:
        """Longest sequence that the model is meant for, in tokens."""
        return min(layer.self_attn.rotary_emb.max_length() for layer in self.model.layers)

    def rope_cache_key(self, num_prompt_tokens: int) -> int:
        """Sequences may share prefix-cache blocks only if this is equal for their prompts.

        0 for ropes that do not depend on the length; see `axion.layers.rotary`.
        """
        return max(
            layer.self_attn.rotary_emb.cache_key(num_prompt_tokens) for layer in self.model.layers
        )


class TextPart(CausalLM):
    """Of a model that also sees, what reads and writes text; in front of the text model's class."""

    renamed_tensors = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^(language_model\.model|model\.language_model)\.", "model."),
    )
    ignored_tensors = (
        *CausalLM.ignored_tensors,
        r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    )
