"""Mixture of experts: a router chooses a few of many feed-forward networks for each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers import kernels
from axion.layers.activation import Activation, apply_gate, clamp_gate

# Rows of what grouped_mm multiplies must begin at multiples of 16 bytes.
ALIGNMENT = 8


class Router(nn.Module):
    """Softmax over all experts, of which each token takes the `top_k` best (Mixtral,
    arXiv:2401.04088).

    Scores are computed in float32 whatever the model's dtype, so that close ones keep their order.

    Args:
        norm_topk_prob: the weights of those that are chosen are divided by their sum, which is a
            softmax over them alone.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        *,
        norm_topk_prob: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.norm_topk_prob = norm_topk_prob
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size), requires_grad=False)
        self.register_parameter(
            "bias",
            nn.Parameter(torch.empty(num_experts), requires_grad=False) if bias else None,
        )

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """`[num_tokens, hidden_size]` to the chosen experts' weights (float32) and indices,
        `[num_tokens, top_k]` each."""
        logits = self.logits(hidden_states)
        if kernel := kernels.of("experts", hidden_states):
            return kernel.choose(  # type: ignore[no-any-return]
                logits,
                self.top_k,
                scoring="softmax",
                normalizes=self.norm_topk_prob,
            )
        if self.norm_topk_prob:
            best, indices = logits.topk(self.top_k)
            return best.softmax(-1), indices
        weights, indices = logits.softmax(-1).topk(self.top_k)
        return weights, indices

    def logits(self, hidden_states: Tensor) -> Tensor:
        """`[num_tokens, num_experts]`, float32."""
        # Pairs are multiplied at once, of which there must be whole vectors.
        kernel = kernels.of("experts", hidden_states, self.weight.shape[1] // 2)
        bias = None if self.bias is None else self.bias.float()
        if kernel is None or self.weight.dtype != hidden_states.dtype:
            return F.linear(hidden_states.float(), self.weight.float(), bias)
        logits: Tensor = kernel.score(hidden_states, self.weight)
        return logits if bias is None else logits + bias


class SigmoidRouter(Router):
    """Every expert's score is a sigmoid; a bias, which kept the load even in training, takes part
    in the choice but not in the weights (DeepSeek-V3, arXiv:2412.19437).

    Args:
        num_groups, top_k_groups: experts are chosen from the groups whose two best are best.
        scaling_factor: on the weights.

    Attributes:
        left_out: the score for the choice of experts in other groups.
        is_sigmoid: a score is one; otherwise what `score` of a subclass computes.
    """

    left_out = float("-inf")
    is_sigmoid = True
    norm_eps: ClassVar[float] = 1e-20

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        top_k: int,
        *,
        norm_topk_prob: bool,
        num_groups: int = 1,
        top_k_groups: int = 1,
        scaling_factor: float,
    ) -> None:
        super().__init__(hidden_size, num_experts, top_k, norm_topk_prob=norm_topk_prob)
        self.num_groups = num_groups
        self.top_k_groups = top_k_groups
        self.scaling_factor = scaling_factor
        # Buffers keep their dtype: the bias is finer than bfloat16.
        self.register_buffer(
            "e_score_correction_bias", torch.empty(num_experts, dtype=torch.float32)
        )

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(hidden_states)
        is_limited = self.top_k_groups < self.num_groups
        if self.is_sigmoid and not is_limited and (kernel := kernels.of("experts", hidden_states)):
            return kernel.choose(  # type: ignore[no-any-return]
                logits,
                self.top_k,
                scoring="sigmoid",
                bias=self.e_score_correction_bias,
                normalizes=self.norm_topk_prob,
                eps=self.norm_eps,
                factor=self.scaling_factor,
            )
        scores = self.score(logits)
        choice = scores + self.e_score_correction_bias
        if is_limited:
            group_scores = choice.unflatten(-1, (self.num_groups, -1)).topk(2).values.sum(-1)
            choice = best_groups(choice, group_scores, self.top_k_groups, fill=self.left_out)
        indices = choice.topk(self.top_k).indices
        return self.weigh(scores, indices), indices

    def score(self, logits: Tensor) -> Tensor:
        """`[num_tokens, num_experts]` to the same."""
        return logits.sigmoid()

    def weigh(self, scores: Tensor, indices: Tensor) -> Tensor:
        """The weights of the chosen experts, `[num_tokens, top_k]`."""
        weights = scores.gather(1, indices)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + self.norm_eps)
        return weights * self.scaling_factor


def best_groups(scores: Tensor, group_scores: Tensor, top_k: int, *, fill: float) -> Tensor:
    """Scores `[num_tokens, num_experts]`, of which those outside each token's best groups become
    `fill`.

    Args:
        group_scores: `[num_tokens, num_groups]`, of groups of neighbouring experts.
    """
    is_left_out = torch.ones_like(group_scores, dtype=torch.bool)
    is_left_out.scatter_(1, group_scores.topk(top_k).indices, False)
    groups = scores.unflatten(-1, (group_scores.shape[-1], -1))
    return groups.masked_fill(is_left_out[..., None], fill).flatten(-2)


class Groups(NamedTuple):
    """Which expert computes which rows, sorted by expert.

    Attributes:
        experts: `[num_rows]`, each row's expert.
        ends: `[num_experts]` int32, where each expert's rows end.
    """

    experts: Tensor
    ends: Tensor


class ExpertLinear(nn.Module):
    """One linear layer for each expert, stacked, each of the same projections of one input.

    A checkpoint stores them stacked too, or each alone: `0.gate_proj.weight`, `0.up_proj.weight`,
    `1.gate_proj.weight` and so on, beside this one in the module tree.

    Args:
        shards: checkpoint name of each projection to its number of output features.
    """

    def __init__(
        self, num_experts: int, in_features: int, shards: dict[str, int], *, bias: bool = False
    ) -> None:
        super().__init__()
        if in_features % ALIGNMENT:
            raise ModelLoadError(
                f"The model's experts have an input of {in_features} features, which must be a "
                f"multiple of {ALIGNMENT}."
            )
        self.num_experts, self.in_features, self.shards = num_experts, in_features, shards
        self.out_features = out_features = sum(shards.values())
        self.weight = nn.Parameter(
            torch.empty(num_experts, out_features, in_features), requires_grad=False
        )
        self.register_parameter(
            "bias",
            nn.Parameter(torch.empty(num_experts, out_features), requires_grad=False)
            if bias
            else None,
        )

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """`[num_rows, in_features]` to `[num_rows, out_features]`, each row by its expert."""
        if kernels.run_on(x):
            from axion.layers.kernels.grouped import grouped_product

            out = grouped_product(x, self.weight, groups.ends)
        else:
            out = F.grouped_mm(x, self.weight.transpose(1, 2), offs=groups.ends)
        return out if self.bias is None else out + self.bias[groups.experts]

    def shard_views(self) -> dict[str, Tensor]:
        """`0.gate_proj.weight` and the like to the part of the stacked parameter that holds it."""
        views = {}
        for name, parameter in self.named_parameters(recurse=False):
            for expert, of_expert in enumerate(parameter.detach()):
                parts = of_expert.split(tuple(self.shards.values()))
                for shard, part in zip(self.shards, parts, strict=True):
                    views[f"{expert}.{shard}.{name}"] = part
        return views


class TransposedExpertLinear(ExpertLinear):
    """A linear layer for each expert, whose weights are stored `[num_experts, in_features,
    out_features]`."""

    def stored_views(self) -> dict[str, Tensor]:
        """Name of each stored tensor to the parameter that it fills, in its shape."""
        views = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return views | {"weight": views["weight"].transpose(1, 2)}


def pass_experts(
    hidden_states: Tensor,
    weights: Tensor,
    indices: Tensor,
    num_experts: int,
    network: Callable[[Tensor, Groups], Tensor],
) -> Tensor:
    """The experts' outputs for each token, weighted and summed.

    Tokens are sorted by expert, so that each expert's weights are read once.

    Args:
        hidden_states: `[num_tokens, hidden_size]`.
        weights, indices: the chosen experts, `[num_tokens, top_k]` each.
        network: computes the rows of all experts.

    Returns:
        `[num_tokens, hidden_size]`.
    """
    if kernel := kernels.of("experts", hidden_states):
        x, experts, ends, places = kernel.dispatch(hidden_states, indices, num_experts)
        return kernel.combine(network(x, Groups(experts, ends)), weights, places)  # type: ignore[no-any-return]
    experts, order = indices.flatten().sort(stable=True)
    all_experts = torch.arange(num_experts, device=experts.device)
    ends = torch.searchsorted(experts, all_experts, right=True, out_int32=True)
    x = network(hidden_states[order // indices.shape[1]], Groups(experts, ends))
    out = torch.empty_like(x)
    out[order] = x
    out = out.unflatten(0, indices.shape)
    return (weights[:, None].to(out.dtype) @ out).squeeze(1)


class Experts(nn.Module):
    """Gated feed-forward networks (arXiv:2002.05202), of which each token passes a few."""

    def __init__(
        self, num_experts: int, hidden_size: int, intermediate_size: int, activation: Activation
    ) -> None:
        super().__init__()
        self.gate_up_proj = ExpertLinear(
            num_experts,
            hidden_size,
            {"gate_proj": intermediate_size, "up_proj": intermediate_size},
        )
        self.down_proj = ExpertLinear(num_experts, intermediate_size, {"down_proj": hidden_size})
        self.activation = activation

    def forward(self, hidden_states: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """The experts' outputs for each token, weighted and summed.

        Args:
            hidden_states: `[num_tokens, hidden_size]`.
            weights, indices: the chosen experts, `[num_tokens, top_k]` each.

        Returns:
            `[num_tokens, hidden_size]`.
        """
        return pass_experts(
            hidden_states, weights, indices, self.gate_up_proj.num_experts, self._network
        )

    def _network(self, x: Tensor, groups: Groups) -> Tensor:
        return self.down_proj(self.activate(self.gate_up_proj(x, groups)), groups)

    def activate(self, gate_up: Tensor) -> Tensor:
        """`[num_rows, 2 * intermediate_size]` to `[num_rows, intermediate_size]`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return apply_gate(self.activation, gate, up)


class ClampedExperts(Experts):
    """Gates are clamped, and what they multiply.

    Args:
        limit: see `clamp_gate`.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        activation: Activation,
        *,
        limit: float,
    ) -> None:
        super().__init__(num_experts, hidden_size, intermediate_size, activation)
        self.limit = limit

    def activate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return apply_gate(self.activation, *clamp_gate(gate, up, self.limit))
