"""Qwen4-Exp (Qwen, 2026; Qwen3.8-Flash-Next is one): the layers of Qwen3.5 with experts, over
several residual streams. Attention is to groups of neighbouring tokens that an indexer chooses, and
some layers add an embedding of the last few tokens together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, count, islice
from math import isqrt
from typing import Annotated, Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers.attention import choose_tokens, entry_rows, pool_groups, tokens_of_groups
from axion.layers.context import ForwardContext, KVCacheSpec, State, StateSpec, StateTensor
from axion.layers.conv import CausalConv1d
from axion.layers.embedding import Embedding
from axion.layers.linear import Linear
from axion.layers.norm import GatedRMSNorm, OffsetRMSNorm
from axion.layers.rotary import RotaryEmbedding, apply_rotary
from axion.layers.state import scan
from axion.models.base import Decoder, DecoderLayer
from axion.models.config import Index, NumExperts, Size
from axion.models.indexed import IndexedForCausalLM
from axion.models.qwen3_5 import (
    Qwen3_5Attention,
    Qwen3_5GatedDeltaNet,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForCausalLM,
)

# For each head of an n-gram embedding a prime is looked for: bounds keep that short.
NumRows = Annotated[int, msgspec.Meta(gt=0, le=2**28)]
_MAX_NGRAM_HEADS = 2**10
# Their frequencies depend on the length of the sequence, and a group's key is of all that go on
# from it.
_OTHER_ROPES = ("dynamic", "longrope")


@dataclass(kw_only=True)
class Qwen4ExpConfig(Qwen3_5MoeConfig):
    """
    Attributes:
        layer_types: `full_attention` is `indexed_attention`.
        output_gate_type: activation of the gate behind linear attention; `hidden_act` by default.
        hc_count, hc_lowrank: residual streams, and the rank of what reads them.
        indexer_n_heads, indexer_head_dim: heads of the indexer, and their size.
        indexer_compress_ratio: tokens of a group.
        indexer_budget: tokens in the groups that a token attends to, at most.
        ple_layer_ids: the layers that add an n-gram embedding, counted from 1.
        ple_embed_dim: size of all its heads together; `hidden_size` by default.
        ple_conv_kernel_size: tokens that its convolution sees, of every `ngram_size` the last.
        ngram_size, heads_per_ngram: n-grams have 2 to so many tokens, each so many heads.
        ngram_vocab_size_base: rows of a head are a prime number, from this one on.
        make_ngram_vocab_size_divisible_by: the rows of all heads are padded to a multiple of this.
        split_ngram_parts: tensors that a checkpoint stores them in.
        seed: of the numbers that n-grams are hashed with. Not read: a checkpoint holds them.
        eos_token_id: the first is where n-grams begin.
    """

    default_partial_rotary_factor = 1.0

    num_experts: NumExperts = 512
    num_experts_per_tok: NumExperts = 10
    norm_topk_prob: bool = True  # type: ignore[assignment]
    output_gate_type: Literal["sigmoid", "silu"] | None = None
    hc_count: Size = 4
    hc_lowrank: Size = 320
    indexer_n_heads: Size | None = None
    indexer_kv_heads: Literal[1] | None = None
    indexer_head_dim: Size | None = None
    indexer_budget: Size | None = None
    indexer_compress_ratio: Size | None = None
    ple_layer_ids: list[Index] | None = None
    ple_embed_dim: Size | None = None
    ple_conv_kernel_size: Size = 4
    ngram_size: Size = 3
    heads_per_ngram: Size = 8
    ngram_vocab_size_base: NumRows = 20_000_000
    make_ngram_vocab_size_divisible_by: Size = 128
    split_ngram_parts: Size = 512
    seed: int = 1234
    eos_token_id: Index | list[Index] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ple_layer_ids = sorted(set(self.ple_layer_ids or ()))
        self.ple_embed_dim = self.ple_embed_dim or self.hidden_size
        if (self.output_gate_type or self.hidden_act) not in ("sigmoid", "silu"):
            raise ValueError(
                f"output_gate_type is missing, and hidden_act ({self.hidden_act[:80]}) is neither "
                "sigmoid nor silu"
            )
        if not {*self.layer_types} <= {"linear_attention"}:
            self._check_indexer()
        if self.ple_layer_ids:
            self._check_ngrams()

    def _check_indexer(self) -> None:
        for name in ("n_heads", "kv_heads", "head_dim", "budget", "compress_ratio"):
            if getattr(self, f"indexer_{name}") is None:
                raise ValueError(f"indexer_{name} is missing, and layers attend to chosen tokens")
        if self.indexer_budget % self.indexer_compress_ratio:
            raise ValueError(
                f"indexer_budget ({self.indexer_budget}) must be a multiple of "
                f"indexer_compress_ratio ({self.indexer_compress_ratio})"
            )
        rotated = int(self.head_dim * self.rope_parameters.partial_rotary_factor)
        if self.indexer_head_dim < rotated:
            raise ValueError(
                f"indexer_head_dim ({self.indexer_head_dim}) must not be below what is rotated of "
                f"head_dim ({rotated})"
            )

    def _check_ngrams(self) -> None:
        linear = [i for i, kind in enumerate(self.layer_types, 1) if kind == "linear_attention"]
        if not {*self.ple_layer_ids} <= {*linear}:
            raise ValueError(
                f"ple_layer_ids {self.ple_layer_ids} must be of the layers with linear attention, "
                "counted from 1"
            )
        if self.eos_token_id is None or self.eos_token_id == []:
            raise ValueError("eos_token_id is missing, and n-grams begin there")
        if self.ngram_size < 2:
            raise ValueError("ngram_size must be 2 at least")
        if self.ple_embed_dim % self.num_ngram_heads:
            raise ValueError(
                f"ple_embed_dim ({self.ple_embed_dim}) must be a multiple of the number of heads "
                f"of n-grams ({self.num_ngram_heads})"
            )
        if len(self.ple_layer_ids) * self.num_ngram_heads > _MAX_NGRAM_HEADS:
            raise ValueError(f"ple_layer_ids have more than {_MAX_NGRAM_HEADS} heads of n-grams")

    @property
    def num_ngram_heads(self) -> int:
        return (self.ngram_size - 1) * self.heads_per_ngram

    def num_ngram_rows(self, layer_idx: int) -> int:
        """Rows of the n-gram embedding of a layer that has one: of each head a prime number, which
        is no other's, of any layer."""
        num_heads = self.num_ngram_heads
        primes = _primes(self.ngram_vocab_size_base, len(self.ple_layer_ids) * num_heads)
        first = self.ple_layer_ids.index(layer_idx + 1) * num_heads
        total = sum(primes[first : first + num_heads])
        multiple = self.make_ngram_vocab_size_divisible_by
        return -(-total // multiple) * multiple

    @classmethod
    def _derive(cls, config: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        derived, sources = super()._derive(config)
        rope_type = derived["rope_parameters"].rope_type
        if rope_type in _OTHER_ROPES:
            raise ModelLoadError(
                f"config.json: rope_type={rope_type} is not supported for this architecture."
            )
        return derived, sources | {"number_of_conv_states"}  # of transformers' cache


@lru_cache(maxsize=1)
def _primes(start: int, num: int) -> list[int]:
    """So many, from `start` on."""
    are_prime = (
        n for n in count(max(start, 2)) if all(n % divisor for divisor in range(2, isqrt(n) + 1))
    )
    return list(islice(are_prime, num))


class StreamsRMSNorm(OffsetRMSNorm):
    """Each of several streams is normalised alone, with a part of the weight."""

    def __init__(self, config: Qwen4ExpConfig) -> None:
        super().__init__(config.hc_count * config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[num_tokens, num_streams, hidden_size]` to the same."""
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return ((self.weight.float() + self.offset).view(x.shape[1:]) * x32).to(x.dtype)


class StreamMixer(nn.Module):
    """Reads one vector from the streams of each token, each number of it by shares of its own."""

    def __init__(self, config: Qwen4ExpConfig) -> None:
        super().__init__()
        size = config.hc_count * config.hidden_size
        self.hc_norm = StreamsRMSNorm(config)
        self.input_mix_weight_down = Linear(size, config.hc_lowrank)
        self.input_mix_weight_up = Linear(config.hc_lowrank, size)

    def forward(self, streams: Tensor) -> Tensor:
        """`[num_tokens, num_streams, hidden_size]` to `[num_tokens, hidden_size]`."""
        return self.mix(self.hc_norm(streams))

    def mix(self, normed: Tensor) -> Tensor:
        """The same of streams that have been normalised."""
        down = self.input_mix_weight_down(normed.flatten(1)) / normed.shape[1]
        shares = self.input_mix_weight_up(F.silu(down)).sigmoid()
        return (shares.view_as(normed) * normed).mean(1)


class GatedResidual(StreamMixer):
    """A block's place among the streams: it reads one vector, and what it makes of that is added to
    each of them by a gate."""

    def __init__(self, config: Qwen4ExpConfig) -> None:
        super().__init__(config)
        size = config.hc_count * config.hidden_size
        self.block_inject_weight = Linear(size, config.hc_count)

    def forward(self, streams: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        """`[num_tokens, num_streams, hidden_size]` to the same.

        Args:
            block: `[num_tokens, hidden_size]` to the same.
        """
        normed = self.hc_norm(streams)
        gates = 2 * (self.block_inject_weight(normed.flatten(1)) / streams.shape[1]).sigmoid()
        return streams + gates[..., None] * block(self.mix(normed))[:, None]


class ShardedEmbedding(Embedding):
    """An embedding that a checkpoint stores in parts of as many rows."""

    def __init__(self, num_embeddings: int, embedding_dim: int, num_parts: int) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.num_parts = num_parts

    def shard_views(self) -> dict[str, Tensor]:
        """`ngram_embedding.shard_0.weight` and so on to their rows."""
        parts = self.weight.detach().chunk(self.num_parts)
        return {f"ngram_embedding.shard_{i}.weight": part for i, part in enumerate(parts)}


class NGramEmbedding(nn.Module):
    """Embeds each token together with those before it, as n-grams of several lengths. Each head
    finds its row by a hash of an n-gram, so some n-grams share one."""

    def __init__(self, config: Qwen4ExpConfig, layer_idx: int) -> None:
        super().__init__()
        eos = config.eos_token_id
        self.eos_token_id: int = eos[0] if isinstance(eos, list) else eos
        self.ngram_size, num_heads = config.ngram_size, config.num_ngram_heads
        self.num_rows = config.num_ngram_rows(layer_idx)
        self.state = StateTensor((self.ngram_size - 1,), torch.int64)
        for name, size in {
            "layer_multipliers": self.ngram_size,
            "ngram_heads_vocab_sizes": num_heads,
            "ngram_heads_offsets": num_heads,
        }.items():
            self.register_buffer(name, torch.empty(size, dtype=torch.int64))
        self.ngram_embedding = ShardedEmbedding(
            self.num_rows, config.ple_embed_dim // num_heads, config.split_ngram_parts
        )

    def check_tables(self, path: str) -> None:
        """Refuse heads whose rows lie outside the embedding.

        Args:
            path: of this module in the model.

        Raises:
            ModelLoadError: some do.
        """
        sizes, offsets = self.ngram_heads_vocab_sizes, self.ngram_heads_offsets
        if (sizes < 1).any() or (offsets < 0).any() or (offsets > self.num_rows - sizes).any():
            raise ModelLoadError(
                f"The weights are damaged: {path}.ngram_heads_vocab_sizes and ngram_heads_offsets "
                f"do not fit the embedding's {self.num_rows} rows. Download the model again."
            )

    def forward(self, input_ids: Tensor, state: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens]` to `[num_tokens, ple_embed_dim]`.

        Args:
            state: `[num_slots, ngram_size - 1]`.
        """
        ngrams = scan(self.ngrams, state, (input_ids, context.positions), context)
        mixed = list(accumulate((ngrams * self.layer_multipliers).unbind(1), torch.bitwise_xor))
        hashes = torch.stack(mixed[1:], dim=1)[..., None]
        sizes, offsets = (
            x.unflatten(0, (self.ngram_size - 1, -1))
            for x in (self.ngram_heads_vocab_sizes, self.ngram_heads_offsets)
        )
        return self.ngram_embedding((hashes % sizes + offsets).flatten(1)).flatten(1)

    def ngrams(self, before: Tensor, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Each token and those before it, the last first; in place of what lies behind an end of
        text, or before the sequence, stands an end of text.

        Args:
            before: `[batch, ngram_size - 1]`.
            ids: `[batch, length]`, and so are `positions`.

        Returns:
            `[batch, length, ngram_size]`, and the last tokens of the run.
        """
        seen, length = torch.cat((before, ids), dim=1), ids.shape[1]
        ngrams = [ids]
        for shift in range(1, self.ngram_size):
            earlier = seen[:, self.ngram_size - 1 - shift :][:, :length]
            is_hidden = positions < shift
            if shift > 1:
                is_hidden = is_hidden | (ngrams[-1] == self.eos_token_id)
            ngrams.append(earlier.masked_fill(is_hidden, self.eos_token_id))
        return torch.stack(ngrams, dim=-1), seen[:, length:]


class PerLayerEmbedding(nn.Module):
    """What a layer adds to the streams: an embedding of n-grams, by a gate for each stream, and a
    convolution of that."""

    def __init__(self, config: Qwen4ExpConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        size = config.hc_count * config.hidden_size
        self.ple_embedding = NGramEmbedding(config, layer_idx)
        self.key_proj = Linear(config.ple_embed_dim, size)
        self.value_proj = Linear(config.ple_embed_dim, config.hidden_size)
        self.norm_key = StreamsRMSNorm(config)
        self.norm_query = StreamsRMSNorm(config)
        self.norm_conv = StreamsRMSNorm(config)
        self.conv1d = CausalConv1d(
            size, config.ple_conv_kernel_size, F.silu, dilation=config.ngram_size
        )
        self.state_spec: StateSpec = {
            "ngram": self.ple_embedding.state,
            "ple_conv": self.conv1d.state,
        }

    def forward(self, streams: Tensor, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, num_streams, hidden_size]` to the same."""
        state = context.states[self.layer_idx]
        embedded = self.ple_embedding(input_ids, state["ngram"], context)
        key = self.norm_key(self.key_proj(embedded).view_as(streams))
        score = (key * self.norm_query(streams)).sum(-1, keepdim=True) * streams.shape[-1] ** -0.5
        score = score.abs().clamp(min=1e-6).sqrt() * score.sign()
        out = score.sigmoid() * self.value_proj(embedded)[:, None]
        local = self.conv1d(self.norm_conv(out).flatten(1), state["ple_conv"], context)
        return out + local.view_as(out)


class GroupIndexer(nn.Module):
    """Chooses the groups of tokens that each token attends to, each by one key, which is the mean
    of its tokens', at the position of the first.

    Groups' keys are kept in a KV cache of their own.
    """

    def __init__(self, config: Qwen4ExpConfig, cache_idx: int) -> None:
        super().__init__()
        num_heads, self.head_dim = config.indexer_n_heads, config.indexer_head_dim
        self.group_size, self.cache_idx = config.indexer_compress_ratio, cache_idx
        self.max_attended = config.indexer_budget
        self.num_chosen = config.indexer_budget // self.group_size
        self.kv_cache_spec = KVCacheSpec(1, self.head_dim, 0, stride=self.group_size)
        self.state_spec: StateSpec = {"tail": StateTensor((self.group_size - 1, self.head_dim))}
        self.index_qk_proj = Linear(config.hidden_size, (num_heads + 1) * self.head_dim)
        self.q_layernorm = OffsetRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_layernorm = OffsetRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        rotary_emb: RotaryEmbedding,
        state: State,
        context: ForwardContext,
    ) -> Tensor | None:
        """The tokens that each attends to, `[num_tokens, indexer_budget + indexer_compress_ratio -
        1]`, as `paged_attention` takes them; None: all."""
        qk = self.index_qk_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        q, k = qk[:, :-1], qk[:, -1]
        self.store(k, rotary_emb, state, context)
        q = apply_rotary(self.q_layernorm(q), *rotary_emb(context, q.dtype))
        groups = choose_tokens(
            q,
            None,
            q.new_full(q.shape[:2], self.head_dim**-0.5, dtype=torch.float32),
            context.kv_caches[self.cache_idx],
            context,
            num_chosen=self.num_chosen,
        )
        return None if groups is None else tokens_of_groups(groups, context, size=self.group_size)

    def store(
        self, k: Tensor, rotary_emb: RotaryEmbedding, state: State, context: ForwardContext
    ) -> None:
        """Keep the keys of the groups that the step completes.

        Args:
            k: `[num_tokens, head_dim]`.
        """
        cache, size = context.kv_caches[self.cache_idx], self.group_size
        keys = pool_groups(k, _mean, state["tail"], context, size=size)
        rows = entry_rows(cache, context)
        tables = context.once(
            (GroupIndexer, rotary_emb.rope),
            lambda context: rotary_emb.tables(
                context.positions[rows] // size * size, context.rope_lengths[rows], k.dtype
            ),
        )
        keys = apply_rotary(self.k_layernorm(keys[rows, None]), *tables)
        cache.keys.store(context.slot_mapping[cache.group][rows], keys)


def _mean(groups: Tensor) -> Tensor:
    return groups.float().mean(-2).to(groups.dtype)


class Qwen4ExpAttention(Qwen3_5Attention):
    def __init__(self, config: Qwen4ExpConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        # Behind the layers' own caches: see `IndexedForCausalLM`.
        self.indexer = GroupIndexer(config, config.num_hidden_layers + layer_idx)
        self.state_spec = self.indexer.state_spec

    def choose(self, hidden_states: Tensor, context: ForwardContext) -> Tensor | None:
        state = context.states[self.layer_idx]
        return self.indexer(hidden_states, self.rotary_emb, state, context)


class Qwen4ExpGatedDeltaNet(Qwen3_5GatedDeltaNet):
    def __init__(self, config: Qwen4ExpConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if (config.output_gate_type or config.hidden_act) == "sigmoid":
            self.norm = GatedRMSNorm(self.v_dim, config.rms_norm_eps, torch.sigmoid)


class Qwen4ExpDecoderLayer(DecoderLayer):
    """Mixer, then MLP, which read and write the streams; what reads them normalises."""

    def __init__(
        self, config: Qwen4ExpConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        del self.input_layernorm, self.post_attention_layernorm
        has_ngrams = layer_idx + 1 in config.ple_layer_ids
        self.ple = PerLayerEmbedding(config, layer_idx) if has_ngrams else None
        self.attn_hyper_connection = GatedResidual(config)
        self.mlp_hyper_connection = GatedResidual(config)

    @property
    def state_spec(self) -> StateSpec:
        """What the layer keeps of a sequence."""
        ngrams = {} if self.ple is None else self.ple.state_spec
        return {**self.self_attn.state_spec, **ngrams}

    def forward(self, streams: Tensor, context: ForwardContext, input_ids: Tensor) -> Tensor:  # type: ignore[override]
        """`[num_tokens, num_streams, hidden_size]` to the same."""
        if self.ple is not None:
            streams = streams + self.ple(streams, input_ids, context)
        mixer = partial(self.self_attn, context=context)
        return self.mlp_hyper_connection(self.attn_hyper_connection(streams, mixer), self.mlp)


class Qwen4ExpDecoder(Decoder):
    """All streams begin as the embedding, and are read once more at the end."""

    def __init__(self, config: Qwen4ExpConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        del self.norm
        self.num_streams = config.hc_count
        self.hyper_connection_mixer = StreamMixer(config)

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        streams = self.embed(input_ids, context)[:, None].expand(-1, self.num_streams, -1)
        for layer in self.layers:
            streams = layer(streams, context, input_ids)
        return self.hyper_connection_mixer(streams)


class Qwen4ExpForCausalLM(Qwen3_5MoeForCausalLM, IndexedForCausalLM):
    architectures = ("Qwen4ExpForCausalLM",)
    config_cls = Qwen4ExpConfig
    mixers = (
        ("indexed_attention", Qwen4ExpAttention),
        ("full_attention", Qwen4ExpAttention),
        ("linear_attention", Qwen4ExpGatedDeltaNet),
    )
    layer_cls = Qwen4ExpDecoderLayer
    decoder_cls = Qwen4ExpDecoder
    config: Qwen4ExpConfig

    def state_specs(self) -> list[StateSpec]:
        return [layer.state_spec for layer in self.model.layers]
