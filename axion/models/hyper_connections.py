"""The standard decoder over several residual streams."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from axion.layers.context import ForwardContext
from axion.layers.hyper_connections import HyperConnection, StreamReader
from axion.models.base import Decoder, DecoderLayer
from axion.models.config import DecoderConfig, Size


@dataclass(kw_only=True)
class StreamsConfig(DecoderConfig):
    """
    Attributes:
        hc_mult: residual streams.
        hc_eps: see `StreamReader`.
    """

    hc_mult: Size = 4
    hc_eps: float = 1e-6


@dataclass(kw_only=True)
class HyperConnectionConfig(StreamsConfig):
    """
    Attributes:
        hc_sinkhorn_iters: `num_iterations` of `HyperConnection`.
    """

    hc_sinkhorn_iters: Size = 20


class HyperDecoderLayer(DecoderLayer):
    """Attention, then MLP, each behind a norm, which read and write the streams."""

    def __init__(
        self, config: StreamsConfig, layer_idx: int, self_attn: nn.Module, mlp: nn.Module
    ) -> None:
        super().__init__(config, layer_idx, self_attn, mlp)
        self.attn_hc, self.ffn_hc = self.connection(config), self.connection(config)

    def connection(self, config: HyperConnectionConfig) -> StreamReader:
        """Build what reads the streams for a block, and writes its output to them."""
        return HyperConnection(
            config.hc_mult,
            config.hidden_size,
            norm_eps=config.rms_norm_eps,
            eps=config.hc_eps,
            num_iterations=config.hc_sinkhorn_iters,
        )

    def forward(self, hidden_states: Tensor, context: ForwardContext, *of_mlp: Tensor) -> Tensor:
        """`[num_tokens, num_streams, hidden_size]` to the same.

        Args:
            of_mlp: what the MLP is given besides.
        """
        read, gates = self.attn_hc(hidden_states)
        out = self.self_attn(self.input_layernorm(read), context)
        hidden_states = self.attn_hc.write(hidden_states, out, gates)
        read, gates = self.ffn_hc(hidden_states)
        out = self.mlp(self.post_attention_layernorm(read), *of_mlp)
        return self.ffn_hc.write(hidden_states, out, gates)


class HyperDecoder(Decoder):
    """All streams begin as the embedding, and are read once more at the end."""

    def __init__(self, config: StreamsConfig, layers: list[nn.Module]) -> None:
        super().__init__(config, layers)
        self.num_streams = config.hc_mult
        self.hc_head = StreamReader(
            config.hc_mult, config.hidden_size, norm_eps=config.rms_norm_eps, eps=config.hc_eps
        )

    def forward(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        streams = self.streams(input_ids, context)
        for layer in self.layers:
            streams = layer(streams, context)
        return self.norm(self.read(streams))

    def streams(self, input_ids: Tensor, context: ForwardContext) -> Tensor:
        """What the first layer reads, `[num_tokens, num_streams, hidden_size]`."""
        return self.embed(input_ids, context)[:, None].expand(-1, self.num_streams, -1)

    def read(self, streams: Tensor) -> Tensor:
        """What is read at the end, `[num_tokens, hidden_size]`."""
        return self.hc_head(streams)[0]
