"""DeepSeek-V4 (2026): each token attends to a window and to entries of several tokens each, in some
layers to all of them and in others to those that an indexer chooses, over several residual
streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.activation import get_activation
from axion.layers.attention import Compressed, choose_tokens, entry_inputs, paged_attention
from axion.layers.context import NO_KV_CACHE, ForwardContext, KVCache, KVCacheSpec
from axion.layers.linear import DenseLinear, Linear, PackedLinear
from axion.layers.moe import ClampedExperts, Experts, Router, SigmoidRouter
from axion.layers.norm import Float32RMSNorm
from axion.layers.rotary import (
    Length,
    Positive,
    RopeParameters,
    RotaryEmbedding,
    apply_rotary_interleaved,
    rotary_embedding,
)
from axion.models.config import Index, NumExperts, Size
from axion.models.hybrid import num_layers, whole_number
from axion.models.hyper_connections import (
    HyperConnectionConfig,
    HyperDecoder,
    HyperDecoderLayer,
)
from axion.models.moe import ClampedMLP, MoE, MoEConfig, MoEForCausalLM

LayerType = Literal[
    "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
]
_SPARSE, _HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
_COMPRESS_RATES = {_SPARSE: 4, _HEAVY: 128}
_OLDER_RATIOS = {0: "sliding_attention", 4: _SPARSE, 128: _HEAVY}
# Their frequencies depend on the length of the sequence, and an entry is of all that go on from it.
_OTHER_ROPES = ("dynamic", "longrope")


@dataclass(kw_only=True)
class DeepseekV4Config(HyperConnectionConfig, MoEConfig):
    """
    Attributes:
        layer_types: which entries a layer's tokens attend to beside the window: none, those that
            are chosen, or all. `compress_ratios` in older configurations.
        compress_rates: tokens of an entry, for each kind of layer that has any.
        compress_rope_parameters: of layers that have entries.
        mlp_layer_types: whether a router chooses a token's experts, or a table by its id. In older
            configurations the first `num_hash_layers` have the table.
        o_groups, o_lora_rank: groups of heads whose outputs are projected apart, and to how many
            numbers each.
        index_n_heads, index_head_dim, index_topk: of the indexer: heads, their size, and how many
            entries a token attends to at most.
        swiglu_limit: gates are clamped from above, what they multiply on both sides.
        num_nextn_predict_layers: layers behind the last, which guess more tokens; not read.
    """

    default_partial_rotary_factor: ClassVar[float] = 64 / 512
    num_key_value_heads: Literal[1] = 1  # type: ignore[assignment]
    head_dim: Size = 512  # type: ignore[assignment]
    max_position_embeddings: Length = 2**20
    attention_bias: Literal[False] = False
    q_lora_rank: Size = 1024
    num_experts: NumExperts = 256
    num_experts_per_tok: NumExperts = 6
    moe_intermediate_size: Size = 2048
    n_shared_experts: Literal[1] = 1
    scoring_func: Literal["sqrtsoftplus", "sigmoid"] = "sqrtsoftplus"
    norm_topk_prob: Literal[True] = True  # type: ignore[assignment]
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    routed_scaling_factor: float = 1.5
    swiglu_limit: Positive = 10.0
    sliding_window: Size = 128
    layer_types: list[LayerType]
    compress_rates: dict[str, Size]
    mlp_layer_types: list[Literal["hash_moe", "moe"]]
    o_groups: Size = 8
    o_lora_rank: Size = 1024
    index_n_heads: Size = 64
    index_head_dim: Size = 128
    index_topk: Size = 512
    num_nextn_predict_layers: Index = 1
    compress_rope_parameters: RopeParameters

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layer_types", "mlp_layer_types"):
            if len(getattr(self, name)) != self.num_hidden_layers:
                raise ValueError(f"{name} must name {self.num_hidden_layers} layers")
        if self.compress_rates.keys() != {_SPARSE, _HEAVY}:
            raise ValueError(f"compress_rates must be of {_SPARSE} and {_HEAVY}")
        if self.num_attention_heads * self.head_dim % self.o_groups:
            raise ValueError(
                f"o_groups ({self.o_groups}) must divide num_attention_heads * head_dim "
                f"({self.num_attention_heads} * {self.head_dim})"
            )
        rotated = int(self.head_dim * self.compress_rope_parameters.partial_rotary_factor)
        rotated += rotated % 2
        if self.index_head_dim < rotated:
            raise ValueError(
                f"index_head_dim ({self.index_head_dim}) must not be below what is rotated of "
                f"head_dim ({rotated})"
            )

    def norm(self) -> nn.Module:
        return DeepseekV4RMSNorm(self.hidden_size, self.rms_norm_eps)

    def window(self, layer_idx: int) -> int | None:
        return self.sliding_window

    def rope(self, layer_idx: int) -> RopeParameters:
        if self.layer_types[layer_idx] == "sliding_attention":
            return self.rope_parameters
        return self.compress_rope_parameters

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        main, compress = _ropes(config)
        config = config | {"rope_scaling": None, "rope_parameters": main}
        derived, sources = super()._derive(config)
        rope_parameters: RopeParameters = derived["rope_parameters"]
        derived["compress_rope_parameters"] = RopeParameters.from_config(
            {"rope_parameters": compress},
            max_position_embeddings=rope_parameters.max_position_embeddings,
            rope_theta=160_000.0,
        )
        for rope in (rope_parameters, derived["compress_rope_parameters"]):
            if rope.rope_type in _OTHER_ROPES:
                raise ModelLoadError(
                    f"config.json: rope_type={rope.rope_type} is not supported for this "
                    "architecture."
                )
        # To transformers the two are one, by either name.
        size = config.get("intermediate_size") or config.get("moe_intermediate_size")
        for name in ("intermediate_size", "moe_intermediate_size"):
            derived[name] = size or cls.moe_intermediate_size
        if config.get("layer_types") is None:
            derived["layer_types"] = _layer_types(config)
        if config.get("mlp_layer_types") is None:
            num_hashed = whole_number(config, "num_hash_layers", 3)
            derived["mlp_layer_types"] = [
                "hash_moe" if i < num_hashed else "moe" for i in range(num_layers(config))
            ]
        older = {_SPARSE: "compress_rate_csa", _HEAVY: "compress_rate_hca"}
        rates = config.get("compress_rates") or _COMPRESS_RATES
        if isinstance(rates, dict):
            of_older = {kind: config[name] for kind, name in older.items() if name in config}
            derived["compress_rates"] = rates | of_older
        return derived, sources | {
            *("compress_rope_theta", "qk_rope_head_dim", "compress_ratios", "num_hash_layers"),
            "expert_dtype",  # of the quantization
            *older.values(),
        }


def _ropes(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of the rope of layers without entries, and of the others'."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ModelLoadError(f"config.json: rope_parameters must be an object, got {rope!r:.80}.")
    main, compress = rope.get("main"), rope.get("compress")
    if isinstance(main, dict) and isinstance(compress, dict):
        return main, compress
    factor = config.get("partial_rotary_factor")
    if factor is None:
        head_dim = whole_number(config, "head_dim", 0) or 512
        factor = whole_number(config, "qk_rope_head_dim", head_dim // 8) / head_dim
    main = {"rope_theta": config.get("rope_theta", 10_000.0), "partial_rotary_factor": factor}
    compress = {name: value for name, value in rope.items() if name not in ("main", "compress")} | {
        "rope_theta": config.get("compress_rope_theta", 160_000.0),
        "partial_rotary_factor": factor,
    }
    if compress.get("rope_type", compress.get("type")) == "yarn":
        compress.setdefault("attention_factor", 1.0)
    return main, compress


def _layer_types(config: dict[str, Any]) -> list[str]:
    """The kinds of layers where `layer_types` does not say them."""
    count, ratios = num_layers(config), config.get("compress_ratios")
    if ratios is None:
        return [_SPARSE if i > 2 and i % 2 else _HEAVY for i in range(count)]
    if not isinstance(ratios, list) or not all(ratio in _OLDER_RATIOS for ratio in ratios):
        raise ModelLoadError(
            f"config.json: compress_ratios must be of {', '.join(map(str, _OLDER_RATIOS))}, got "
            f"{ratios!r:.80}."
        )
    return [_OLDER_RATIOS[ratio] for ratio in ratios[:count]]


class DeepseekV4RMSNorm(Float32RMSNorm):
    """Its weight stays in float32, as it is stored."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps)
        del self.weight
        self.register_buffer("weight", torch.empty(size, dtype=torch.float32))


def _rotate_last(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last `2 * num_pairs` of each head, neighbours as pairs; arguments as of
    `apply_rotary`."""
    rest, rotated = x.tensor_split((x.shape[-1] - cos.shape[-1],), dim=-1)
    return torch.cat((rest, apply_rotary_interleaved(rotated, cos, sin)), dim=-1)


class Compressor(nn.Module):
    """Makes one entry of several tokens: each of its numbers is a mean of theirs, weighted by a
    softmax over them. In sparse layers the tokens of the entry before take part, by projections of
    their own.

    Args:
        cache_idx: of the KV caches the first of its two: what its entries are made of, and those.
        has_values: entries are values, too.
    """

    def __init__(
        self,
        config: DeepseekV4Config,
        layer_idx: int,
        cache_idx: int,
        *,
        head_dim: int,
        has_values: bool,
    ) -> None:
        super().__init__()
        kind = config.layer_types[layer_idx]
        self.head_dim, self.cache_idx = head_dim, cache_idx
        self.stride = config.compress_rates[kind]
        self.num_parts = 2 if kind == _SPARSE else 1
        size, self.length = self.num_parts * head_dim, self.num_parts * self.stride
        self.kv_cache_specs = [
            KVCacheSpec(1, size, size, window=self.length),
            KVCacheSpec(
                *(1, head_dim, head_dim if has_values else 0, has_values), stride=self.stride
            ),
        ]
        self.kv_gate_proj = PackedLinear(config.hidden_size, {"kv_proj": size, "gate_proj": size})
        self.register_buffer("position_bias", torch.empty(self.stride, size, dtype=torch.float32))
        self.kv_norm = DeepseekV4RMSNorm(head_dim, config.rms_norm_eps)

    def store(
        self, hidden_states: Tensor, rotary_emb: RotaryEmbedding, context: ForwardContext
    ) -> KVCache:
        """Store the entries of the step's tokens, `[num_tokens, hidden_size]`; where."""
        inputs, entries = context.kv_caches[self.cache_idx : self.cache_idx + 2]
        kv, gate = self.kv_gate_proj(hidden_states)
        inputs.store(context.slot_mapping[inputs.group], kv[:, None], gate[:, None])
        made = entry_inputs(inputs, entries, context, length=self.length)
        kv, gate = (
            self._parts(x.gather(made.slots)[:, :, 0]) for x in (inputs.keys, inputs.values)
        )
        gate = gate.float() + self._parts(self.position_bias.repeat(self.num_parts, 1)[None])
        tokens = torch.arange(self.stride - self.length, self.stride, device=kv.device)
        is_there = made.starts[:, None] + tokens >= 0
        weights = gate.masked_fill(~is_there[..., None], float("-inf")).softmax(1)
        entry = self.kv_norm((kv * weights.to(kv.dtype)).sum(1))[:, None]
        tables = context.once(
            (Compressor, rotary_emb.rope, self.stride),
            lambda context: rotary_emb.tables(
                made.starts, context.rope_lengths[made.rows], kv.dtype
            ),
        )
        slots = context.slot_mapping[entries.group][made.rows]
        entries.keys.store(slots, _rotate_last(entry, *tables))
        return entries

    def _parts(self, x: Tensor) -> Tensor:
        """Of `[batch, length, num_parts * head_dim]` what each token contributes,
        `[batch, length, head_dim]`."""
        x = x.unflatten(-1, (self.num_parts, -1)).unflatten(1, (self.num_parts, -1))
        return x.diagonal(dim1=1, dim2=3).movedim(-1, 1).flatten(1, 2)


class Indexer(Compressor):
    """Chooses the entries that each token attends to, by keys of entries of its own."""

    def __init__(self, config: DeepseekV4Config, layer_idx: int, cache_idx: int) -> None:
        head_dim, num_heads = config.index_head_dim, config.index_n_heads
        super().__init__(config, layer_idx, cache_idx, head_dim=head_dim, has_values=False)
        self.num_chosen = config.index_topk
        self.q_b_proj = Linear(config.q_lora_rank, num_heads * head_dim)
        self.weights_proj = DenseLinear(config.hidden_size, num_heads)
        self.scale = (num_heads * head_dim) ** -0.5

    def forward(
        self,
        q_latent: Tensor,
        hidden_states: Tensor,
        rotary_emb: RotaryEmbedding,
        context: ForwardContext,
    ) -> Tensor | None:
        """As `choose_tokens`; arguments `[num_tokens, q_lora_rank]` and `[num_tokens,
        hidden_size]`."""
        entries = self.store(hidden_states, rotary_emb, context)
        q = self.q_b_proj(q_latent).unflatten(-1, (-1, self.head_dim))
        q = _rotate_last(q, *rotary_emb(context, q.dtype))
        weights = self.weights_proj(hidden_states).float() * self.scale
        return choose_tokens(q, None, weights, entries, context, num_chosen=self.num_chosen)


class DeepseekV4Attention(nn.Module):
    """Attention with one head of keys, which are the values too, over a window and over entries."""

    def __init__(self, config: DeepseekV4Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.eps = layer_idx, config.rms_norm_eps
        hidden_size, num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim, self.num_groups = config.head_dim, config.o_groups
        self.scale, self.window = self.head_dim**-0.5, config.sliding_window
        self.kv_cache_spec = KVCacheSpec(1, self.head_dim, self.head_dim, True, self.window)
        self.q_a_proj = Linear(hidden_size, config.q_lora_rank)
        self.q_a_norm = DeepseekV4RMSNorm(config.q_lora_rank, self.eps)
        self.q_b_proj = Linear(config.q_lora_rank, num_heads * self.head_dim)
        self.kv_proj = Linear(hidden_size, self.head_dim)
        self.kv_norm = DeepseekV4RMSNorm(self.head_dim, self.eps)
        out_size = self.num_groups * config.o_lora_rank
        self.o_a_proj = DenseLinear(num_heads * self.head_dim // self.num_groups, out_size)
        self.o_b_proj = Linear(out_size, hidden_size)
        self.register_buffer("sinks", torch.empty(num_heads, dtype=torch.float32))
        self.rotary_emb = rotary_embedding(config.rope(layer_idx), self.head_dim)
        self.compressor: Compressor | None = None
        # Behind the layers' own caches: see `kv_cache_specs` below.
        cache_idx = config.num_hidden_layers + 4 * layer_idx
        kind = config.layer_types[layer_idx]
        if kind != "sliding_attention":
            self.compressor = Compressor(
                config, layer_idx, cache_idx, head_dim=self.head_dim, has_values=True
            )
        if self.compressor is not None and kind == _SPARSE:
            self.compressor.indexer = Indexer(config, layer_idx, cache_idx + 2)

    def forward(self, hidden_states: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, hidden_size]` to the same."""
        cos, sin = self.rotary_emb(context, hidden_states.dtype)
        q_latent = self.q_a_norm(self.q_a_proj(hidden_states))
        q = self.q_b_proj(q_latent).unflatten(-1, (-1, self.head_dim))
        q = q * torch.rsqrt(q.float().square().mean(-1, keepdim=True) + self.eps).to(q.dtype)
        kv = _rotate_last(self.kv_norm(self.kv_proj(hidden_states))[:, None], cos, sin)
        out = paged_attention(
            _rotate_last(q, cos, sin),
            kv,
            kv,
            context.kv_caches[self.layer_idx],
            context,
            scale=self.scale,
            window=self.window,
            sinks=self.sinks,
            compressed=self.compress(q_latent, hidden_states, context),
        )
        # Values have been rotated as keys: back, so that only distances count.
        out = _rotate_last(out, cos, -sin).flatten(1).unflatten(-1, (self.num_groups, -1))
        groups = self.o_a_proj.weight.unflatten(0, (self.num_groups, -1))
        return self.o_b_proj(torch.einsum("tgi,goi->tgo", out, groups).flatten(1))

    def compress(
        self, q_latent: Tensor, hidden_states: Tensor, context: ForwardContext
    ) -> Compressed | None:
        """The entries that tokens attend to; None: there are none."""
        if self.compressor is None:
            return None
        entries, chosen = self.compressor.store(hidden_states, self.rotary_emb, context), None
        if hasattr(self.compressor, "indexer"):
            chosen = self.compressor.indexer(q_latent, hidden_states, self.rotary_emb, context)
        return Compressed(entries, chosen)


class DeepseekV4Router(SigmoidRouter):
    """A score is the root of a softplus."""

    def __init__(self, config: DeepseekV4Config) -> None:
        super().__init__(
            config.hidden_size,
            config.num_experts,
            config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
            scaling_factor=config.routed_scaling_factor,
        )
        self.is_sigmoid = config.scoring_func == "sigmoid"

    def score(self, logits: Tensor) -> Tensor:
        return super().score(logits) if self.is_sigmoid else F.softplus(logits).sqrt()


class HashRouter(DeepseekV4Router):
    """A table says which experts a token has, by its id; the scores only weigh them."""

    def __init__(self, config: DeepseekV4Config) -> None:
        super().__init__(config)
        del self.e_score_correction_bias
        table = torch.empty(config.vocab_size, config.num_experts_per_tok, dtype=torch.int64)
        self.register_buffer("tid2eid", table)
        self.num_experts = config.num_experts

    def check_tables(self, path: str) -> None:
        """Refuse a table that names experts that do not exist.

        Args:
            path: of this module in the model.

        Raises:
            ModelLoadError: it does.
        """
        least, most = (int(bound) for bound in self.tid2eid.aminmax())
        if least < 0 or most >= self.num_experts:
            wrong = least if least < 0 else most
            raise ModelLoadError(
                f"The weights are damaged: {path}.tid2eid gives a token the expert {wrong}, and "
                f"experts are numbered from 0 to {self.num_experts - 1}. Download the model again."
            )

    def forward(self, hidden_states: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        indices = self.tid2eid[input_ids]
        return self.weigh(self.score(self.logits(hidden_states)), indices), indices


class DeepseekV4MoE(MoE):
    def __init__(self, config: DeepseekV4Config, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_hashed = config.mlp_layer_types[layer_idx] == "hash_moe"
        if self.is_hashed:
            self.gate = HashRouter(config)
        self.shared_experts = ClampedMLP(config, layer_idx)

    def router(self, config: DeepseekV4Config) -> Router:  # type: ignore[override]
        return DeepseekV4Router(config)

    def build_experts(self, config: DeepseekV4Config) -> Experts:  # type: ignore[override]
        return ClampedExperts(
            config.num_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            get_activation(config.hidden_act),
            limit=config.swiglu_limit,
        )

    def forward(self, hidden_states: Tensor, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """`[num_tokens, hidden_size]` to the same."""
        routed = self.gate(hidden_states, *([input_ids] if self.is_hashed else []))
        return self.experts(hidden_states, *routed) + self.shared_experts(hidden_states)


class DeepseekV4Decoder(HyperDecoder):
    """Layers know the ids of the tokens."""

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        streams = self.streams(input_ids, context)
        for layer in self.layers:
            streams = layer(streams, context, input_ids)
        return self.norm(self.read(streams))


class DeepseekV4ForCausalLM(MoEForCausalLM):
    architectures = ("DeepseekV4ForCausalLM",)
    batch_dependence = (
        "it attends to entries that score best, and the last bits of scores depend on the batch"
    )
    renamed_tensors = (
        (r"^embed\.", "embed_tokens."),
        (r"^head\.", "lm_head."),
        (r"^(model\.)?hc_head[._](hc_)?", "model.hc_head."),
        *MoEForCausalLM.renamed_tensors,
        (r"\.attn\.", ".self_attn."),
        (r"\.ffn\.", ".mlp."),
        (r"\.attn_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."),
        (r"\.hc_(attn|ffn)_", r".\1_hc."),
        (r"\.attn_sink$", ".sinks"),
        (r"\.self_attn\.indexer\.(compressor\.)?", ".self_attn.compressor.indexer."),
        (r"\.indexer\.scorer\.", ".indexer."),
        (r"\.self_attn\.((compressor\.)?(indexer\.)?)norm\.", r".self_attn.\1kv_norm."),
        (r"\.ape$", ".position_bias"),
        (r"\.wq_(a|b)\.", r".q_\1_proj."),
        (r"\.wo_(a|b)\.", r".o_\1_proj."),
        (r"\.q_norm\.", ".q_a_norm."),
        (r"\.wkv\.", ".kv_proj."),
        (r"\.(wgate|w1)\.", ".gate_proj."),
        (r"\.w2\.", ".down_proj."),
        (r"\.w3\.", ".up_proj."),
        (r"\.gate\.bias$", ".gate.e_score_correction_bias"),
    )
    ignored_tensors = (*MoEForCausalLM.ignored_tensors, r"(model\.)?mtp\..*")
    config_cls = DeepseekV4Config
    attention_cls = DeepseekV4Attention
    layer_cls = HyperDecoderLayer
    decoder_cls = DeepseekV4Decoder
    moe_cls = DeepseekV4MoE

    def kv_cache_specs(self) -> list[KVCacheSpec]:
        """What each layer needs of the KV cache, and then its compressors, up to two of them."""
        specs = super().kv_cache_specs()
        for layer in self.model.layers:
            compressor = layer.self_attn.compressor
            for module in (compressor, getattr(compressor, "indexer", None)):
                specs += [NO_KV_CACHE] * 2 if module is None else module.kv_cache_specs
        return specs

    def attends_to_all_of(self, num_tokens: int) -> bool:
        return all(layer.self_attn.compressor is None for layer in self.model.layers)
