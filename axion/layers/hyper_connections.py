"""Several residual streams in place of one, which each block reads and writes by gates that are
made of what all of them hold (hyper-connections, arXiv:2409.19606)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers import kernels


class StreamReader(nn.Module):
    """Reads one vector from the streams of each token, and makes gates to write to them with.

    Args:
        num_gates: how many numbers each further gate has, beside those by which the streams are
            read.
        norm_eps: of the norm over all streams of a token.
        eps: by so much a stream is read at least.
    """

    def __init__(
        self,
        num_streams: int,
        hidden_size: int,
        num_gates: tuple[int, ...] = (),
        *,
        norm_eps: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.num_gates = (num_streams, *num_gates)
        self.norm_eps, self.eps = norm_eps, eps
        total = sum(self.num_gates)
        # Buffers keep their dtype: the gates are finer than bfloat16.
        for name, shape in {
            "fn": (total, num_streams * hidden_size),
            "base": (total,),
            "scale": (len(self.num_gates),),
        }.items():
            self.register_buffer(name, torch.empty(shape, dtype=torch.float32))

    def forward(self, streams: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What is read, and the further gates, as numbers of any size.

        Args:
            streams: `[num_tokens, num_streams, hidden_size]`.

        Returns:
            `[num_tokens, hidden_size]`, and `[num_tokens, n]` in float32 for each of `num_gates`.
        """
        flat = streams.flatten(1).float()
        norm = torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.norm_eps)
        mixed = (F.linear(flat, self.fn) * norm).split(self.num_gates, dim=-1)
        bases = self.base.split(self.num_gates)
        gates = [x * scale + base for x, scale, base in zip(mixed, self.scale, bases, strict=True)]
        shares = gates[0].sigmoid() + self.eps
        read = (shares[:, None] @ flat.view(streams.shape)).squeeze(1)
        return read.to(streams.dtype), gates[1:]


class HyperConnection(StreamReader):
    """A block's place among the streams: it reads one vector, and what it makes of that is added to
    all of them, which are mixed by a doubly stochastic matrix, so that they neither grow nor vanish
    (manifold-constrained hyper-connections, arXiv:2512.24880).

    Args:
        num_iterations: of the Sinkhorn-Knopp algorithm (doi:10.2140/pjm.1967.21.343).
        eps: is also added to what rows and columns are divided by.
    """

    def __init__(
        self,
        num_streams: int,
        hidden_size: int,
        *,
        norm_eps: float,
        eps: float,
        num_iterations: int,
    ) -> None:
        num_gates = (num_streams, num_streams**2)
        super().__init__(num_streams, hidden_size, num_gates, norm_eps=norm_eps, eps=eps)
        self.num_iterations = num_iterations

    def write(self, streams: Tensor, out: Tensor, gates: list[Tensor]) -> Tensor:
        """Mix the streams and add a block's output to each, in float32.

        Args:
            streams: `[num_tokens, num_streams, hidden_size]`, as they were read.
            out: `[num_tokens, hidden_size]`.
            gates: as they came with what the block has read.

        Returns:
            The streams after the block.
        """
        shares, mix = gates
        written = 2 * shares.sigmoid()[..., None] * out[:, None].float()
        mix = self.doubly_stochastic(mix.unflatten(-1, (streams.shape[1], -1)))
        # A row says where a stream goes.
        return torch.baddbmm(written, mix.transpose(1, 2), streams.float()).to(streams.dtype)

    def doubly_stochastic(self, mix: Tensor) -> Tensor:
        """`[num_tokens, num_streams, num_streams]` of any numbers to such whose rows and columns
        add up to 1."""
        if kernels.run_on(mix):
            from axion.layers.kernels import sinkhorn

            return sinkhorn.doubly_stochastic(mix, self.eps, self.num_iterations)
        mix = mix.softmax(-1) + self.eps
        mix = mix / (mix.sum(-2, keepdim=True) + self.eps)
        for _ in range(self.num_iterations - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + self.eps)
            mix = mix / (mix.sum(-2, keepdim=True) + self.eps)
        return mix
