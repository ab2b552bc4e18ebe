"""Gemma 4 (Google, 2026): layers without a window have heads of another size, the last layers read
the keys and values of earlier ones, and each layer has an embedding of its own. Only the text part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import get_activation
from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext
from axion.layers.embedding import Embedding
from axion.layers.linear import Linear, PackedLinear
from axion.layers.moe import Experts
from axion.layers.norm import Float32RMSNorm
from axion.layers.rotary import Length, Positive
from axion.models.base import MLP, Attention, DecoderLayer
from axion.models.config import Index, LocalRopeConfig, NumExperts, Size
from axion.models.gemma import GemmaDecoder
from axion.models.gemma2 import Gemma2ForCausalLM
from axion.models.moe import MoEForCausalLM

_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}


@dataclass(kw_only=True)
class Gemma4TextConfig(LocalRopeConfig):
    """
    Attributes:
        global_head_dim, num_global_key_value_heads: of the layers without a window. transformers
            writes them into `per_layer_config`.
        attention_k_eq_v: the layers without a window have no projection of values: keys are those.
        num_kv_shared_layers: the last layers, so many, read the keys and values that the last layer
            of their kind before them has stored.
        use_double_wide_mlp: those layers have an MLP of twice the width.
        hidden_size_per_layer_input: of each layer's own embedding; 0: there is none.
        enable_moe_block: beside the MLP there are experts.
        use_bidirectional_attention: "vision" is about images, and the same for text.
    """

    renamed_fields = (("hidden_activation", "hidden_act"), ("top_k_experts", "num_experts_per_tok"))

    num_key_value_heads: Size | None = 4
    head_dim: Size | None = 256
    global_head_dim: Size = 512
    num_global_key_value_heads: Size | None = None
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: Length = 131_072
    tie_word_embeddings: bool = True
    sliding_window: Size | None = 512
    sliding_window_pattern: Size | None = 6
    final_logit_softcapping: Positive | None = None
    vocab_size_per_layer_input: Size = 262_144
    hidden_size_per_layer_input: Index | None = 256
    attention_k_eq_v: bool = False
    num_kv_shared_layers: Index = 0
    use_double_wide_mlp: bool = False
    enable_moe_block: bool = False
    num_experts: NumExperts | None = None
    num_experts_per_tok: NumExperts | None = None
    moe_intermediate_size: Size | None = None
    use_bidirectional_attention: Literal["vision"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.enable_moe_block and not (
            self.num_experts and self.num_experts_per_tok and self.moe_intermediate_size
        ):
            raise ValueError(
                "enable_moe_block needs num_experts, top_k_experts and moe_intermediate_size"
            )
        for layer_idx in range(self.num_hidden_layers):
            self.kv_layer(layer_idx)

    @property
    def first_shared_layer(self) -> int:
        return self.num_hidden_layers - self.num_kv_shared_layers

    def kv_layer(self, layer_idx: int) -> int:
        """The layer whose keys and values the layer attends to."""
        if layer_idx < self.first_shared_layer:
            return layer_idx
        kind = self.is_sliding(layer_idx)
        for earlier in reversed(range(self.first_shared_layer)):
            if self.is_sliding(earlier) == kind:
                return earlier
        raise ValueError(
            f"num_kv_shared_layers ({self.num_kv_shared_layers}) leaves no layer of the kind of "
            f"layer {layer_idx} that has keys and values"
        )

    def of_layer(self, layer_idx: int) -> Gemma4TextConfig:
        """The same with the sizes of the layer's heads."""
        if self.is_sliding(layer_idx):
            return self
        heads = self.num_global_key_value_heads or self.num_key_value_heads
        return replace(self, head_dim=self.global_head_dim, num_key_value_heads=heads)

    def is_sliding(self, layer_idx: int) -> bool:
        """The last layer never is."""
        return layer_idx < self.num_hidden_layers - 1 and super().is_sliding(layer_idx)

    def norm(self) -> Float32RMSNorm:
        return Float32RMSNorm(self.hidden_size, self.rms_norm_eps)

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(
            config | {"rope_parameters": config.get("rope_parameters") or _ROPES}
        )
        if not config.get("attention_k_eq_v"):
            derived["num_global_key_value_heads"] = None
        if (of_layers := config.get("per_layer_config")) is not None:
            kinds = config.get("layer_types") or []
            full = {i for i, kind in enumerate(kinds) if kind == "full_attention"}
            sizes = list(of_layers.values())
            if {int(name) for name in of_layers} != full or any(s != sizes[0] for s in sizes):
                raise ModelLoadError(
                    "config.json: per_layer_config must name the layers that are full_attention, "
                    "and say the same of all."
                )
            sizes = dict(sizes[0]) if sizes else {}
            derived["global_head_dim"] = sizes.pop("head_dim", config.get("head_dim", 256))
            derived["num_global_key_value_heads"] = sizes.pop("num_key_value_heads", None)
            if sizes:
                raise ModelLoadError(
                    f"config.json: per_layer_config has {', '.join(sizes)[:80]}, which is not "
                    "supported."
                )
        return derived, sources | {"per_layer_config"}


class Gemma4Attention(Attention):
    def __init__(self, config: Gemma4TextConfig, layer_idx: int) -> None:
        own = config.of_layer(layer_idx)
        super().__init__(own, layer_idx)
        self.scale = 1.0
        self.kv_layer_idx = config.kv_layer(layer_idx)
        self.is_shared = self.kv_layer_idx != layer_idx
        sizes = dict(self.qkv_proj.shards)
        self.q_norm = Float32RMSNorm(own.head_dim, own.rms_norm_eps)
        if self.is_shared:
            del self.qkv_proj
            self.q_proj = Linear(own.hidden_size, sizes["q_proj"], bias=own.attention_bias)
            self.kv_cache_spec = self.kv_cache_spec._replace(num_kv_heads=0)
            return
        self.k_norm = Float32RMSNorm(own.head_dim, own.rms_norm_eps)
        self.eps = own.rms_norm_eps
        if config.attention_k_eq_v and not config.is_sliding(layer_idx):
            del sizes["v_proj"]
            self.qkv_proj = PackedLinear(own.hidden_size, sizes, bias=own.attention_bias)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        if not self.is_shared:
            return super().forward(hidden_states, context)
        q = self.q_norm(self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim)))
        cos, sin = self.rotary_emb(context, q.dtype)
        out = paged_attention(
            self.apply_rotary(q, cos, sin),
            None,
            None,
            context.kv_caches[self.kv_layer_idx],
            context,
            scale=self.scale,
            window=self.window,
        )
        return self.o_proj(out.flatten(1))

    def project_qkv(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, *rest = (x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj(hidden_states))
        v = (rest[0] if rest else k).float()
        v32 = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + self.eps)
        return q, k, v32.to(k.dtype)

    def normalize_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class Gemma4MLP(MLP):
    def __init__(self, config: Gemma4TextConfig, layer_idx: int) -> None:
        is_wide = config.use_double_wide_mlp and layer_idx >= config.first_shared_layer
        size = config.intermediate_size * (2 if is_wide else 1)
        super().__init__(replace(config, intermediate_size=size), layer_idx)


class Gemma4Router(nn.Module):
    """A softmax over the chosen experts, of normalised hidden states, times a factor for each."""

    def __init__(self, config: Gemma4TextConfig) -> None:
        super().__init__()
        self.top_k, self.eps = config.num_experts_per_tok, config.rms_norm_eps
        self.proj = Linear(config.hidden_size, config.num_experts)
        self.scale = nn.Parameter(torch.empty(config.hidden_size), requires_grad=False)
        self.per_expert_scale = nn.Parameter(torch.empty(config.num_experts), requires_grad=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """As `axion.layers.moe.Router.forward`."""
        x = hidden_states.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        x = x.to(hidden_states.dtype) * self.scale * x.shape[-1] ** -0.5
        best, indices = self.proj(x).float().topk(self.top_k)
        return best.softmax(-1) * self.per_expert_scale[indices], indices


class Gemma4DecoderLayer(DecoderLayer):
    def __init__(
        self, config: Gemma4TextConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.pre_feedforward_layernorm = config.norm()
        self.post_feedforward_layernorm = config.norm()
        self.register_buffer("layer_scalar", torch.empty(1))
        self.activation = get_activation(config.hidden_act)
        self.has_experts = config.enable_moe_block
        if config.hidden_size_per_layer_input:
            size = config.hidden_size_per_layer_input
            self.per_layer_input_gate = Linear(config.hidden_size, size)
            self.per_layer_projection = Linear(size, config.hidden_size)
            self.post_per_layer_input_norm = config.norm()
        if config.enable_moe_block:
            self.router = Gemma4Router(config)
            self.experts = Experts(
                config.num_experts,
                config.hidden_size,
                config.moe_intermediate_size,
                self.activation,
            )
            self.post_feedforward_layernorm_1 = config.norm()
            self.post_feedforward_layernorm_2 = config.norm()
            self.pre_feedforward_layernorm_2 = config.norm()

    def forward(
        self, hidden_states: Tensor, context: ForwardContext, of_layer: Tensor | None = None
    ) -> Tensor:
        """Args: of_layer: its own embedding, `[num_tokens, hidden_size_per_layer_input]`."""
        out = self.self_attn(self.input_layernorm(hidden_states), context)
        hidden_states = hidden_states + self.post_attention_layernorm(out)
        out = self.mlp(self.pre_feedforward_layernorm(hidden_states))
        if self.has_experts:
            weights, indices = self.router(hidden_states)
            chosen = self.pre_feedforward_layernorm_2(hidden_states)
            chosen = self.post_feedforward_layernorm_2(self.experts(chosen, weights, indices))
            out = self.post_feedforward_layernorm_1(out) + chosen
        hidden_states = hidden_states + self.post_feedforward_layernorm(out)
        if of_layer is not None:
            gate = self.activation(self.per_layer_input_gate(hidden_states))
            out = self.per_layer_projection(gate * of_layer)
            hidden_states = hidden_states + self.post_per_layer_input_norm(out)
        return hidden_states * self.layer_scalar.to(hidden_states.dtype)


class Gemma4Decoder(GemmaDecoder):
    def __init__(self, config: Gemma4TextConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.size = config.hidden_size_per_layer_input
        if self.size:
            all_layers = len(layers) * self.size
            self.embed_tokens_per_layer = Embedding(config.vocab_size_per_layer_input, all_layers)
            self.per_layer_model_projection = Linear(config.hidden_size, all_layers)
            self.per_layer_projection_norm = Float32RMSNorm(self.size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        hidden_states = self.embed(input_ids, context)
        of_layers = self.embed_for_layers(input_ids, hidden_states)
        for layer, of_layer in zip(self.layers, of_layers, strict=True):
            hidden_states = layer(hidden_states, context, of_layer)
        return self.norm(hidden_states)

    def embed_for_layers(self, input_ids: Tensor, hidden_states: Tensor) -> list[Tensor | None]:
        """For each layer `[num_tokens, hidden_size_per_layer_input]`, of the token and of what the
        first layer reads together."""
        if not self.size:
            return [None] * len(self.layers)
        shape = (len(self.layers), self.size)
        factor = torch.tensor(self.size**0.5, dtype=hidden_states.dtype)
        tokens = (self.embed_tokens_per_layer(input_ids) * factor).unflatten(-1, shape)
        projected = self.per_layer_model_projection(hidden_states) * hidden_states.shape[-1] ** -0.5
        projected = self.per_layer_projection_norm(projected.unflatten(-1, shape))
        return list(((projected + tokens) * 2**-0.5).unbind(1))


class Gemma4ForCausalLM(Gemma2ForCausalLM):
    architectures = ("Gemma4ForCausalLM",)
    renamed_tensors = MoEForCausalLM.renamed_tensors
    config_cls = Gemma4TextConfig
    attention_cls = Gemma4Attention
    mlp_cls = Gemma4MLP
    layer_cls = Gemma4DecoderLayer
    decoder_cls = Gemma4Decoder
    config: Gemma4TextConfig

    def __init__(self, config: Gemma4TextConfig) -> None:
        super().__init__(config)
        # Of layers that share them, checkpoints may hold what computed keys and values once.
        self.ignored_tensors += tuple(
            rf"model\.layers\.{layer}\.self_attn\.[kv]_(proj|norm)\..*"
            for layer in range(config.first_shared_layer, config.num_hidden_layers)
        )
