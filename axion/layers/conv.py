"""Short convolutions over the tokens before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.layers.activation import Activation
from axion.layers.context import ForwardContext, StateTensor
from axion.layers.state import scan


class CausalConv1d(nn.Module):
    """A convolution of each channel over `kernel_size` values, then an activation.

    What it keeps of a sequence are the inputs that the next ones will see.

    Args:
        dilation: the values are every so many-th one, up to the last.
    """

    def __init__(
        self,
        num_channels: int,
        kernel_size: int,
        activation: Activation | None = None,
        *,
        bias: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.state = StateTensor((num_channels, dilation * (kernel_size - 1)))
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(num_channels, 1, kernel_size), requires_grad=False)
        self.register_parameter(
            "bias",
            nn.Parameter(torch.empty(num_channels), requires_grad=False) if bias else None,
        )

    def forward(self, x: Tensor, state: Tensor, context: ForwardContext) -> Tensor:
        """`[num_tokens, num_channels]` to the same.

        Args:
            state: `[num_slots, num_channels, dilation * (kernel_size - 1)]`.
        """
        return scan(self._convolve, state, (x,), context)

    def _convolve(self, before: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        window = torch.cat((before, x.transpose(1, 2)), dim=-1)
        if x.shape[1] == 1:
            out = (window[..., :: self.dilation] * self.weight[:, 0]).sum(-1, keepdim=True)
            out = out if self.bias is None else out + self.bias[:, None]
        else:
            out = F.conv1d(
                window, self.weight, self.bias, dilation=self.dilation, groups=len(self.weight)
            )
        if self.activation is not None:
            out = self.activation(out)
        return out.transpose(1, 2), window[..., x.shape[1] :]


class PackedConv1d(CausalConv1d):
    """A convolution whose channels a checkpoint stores whole, or in parts beside it.

    Args:
        shards: name of each part to how many channels it has.
    """

    def __init__(self, shards: dict[str, int], kernel_size: int, activation: Activation) -> None:
        super().__init__(sum(shards.values()), kernel_size, activation)
        self.shards = shards

    def shard_views(self) -> dict[str, Tensor]:
        """`q_conv1d.weight` and the like to the channels that it holds."""
        parts = self.weight.detach().split(tuple(self.shards.values()))
        return {f"{name}.weight": part for name, part in zip(self.shards, parts, strict=True)}
