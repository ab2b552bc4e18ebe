"""Weights as the CPU's kernels read them: where they lie, and what a product needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PackedWeight(NamedTuple):
    """
    Attributes:
        kind: "bf16", "int8" or "int4", which the products of `linear` and `low_bit` take, or the
            name of a layout, for that of `blocks`.
        codes, scales: as that product takes them; in bfloat16 there are no scales.
        group_size: inputs that share a scale, of "int4"; 0: of the others.
        max_rows: of how many rows the product is the fastest.
    """

    kind: str
    codes: Tensor
    scales: Tensor | None
    in_features: int
    out_features: int
    group_size: int
    max_rows: int


class PackedExperts(NamedTuple):
    """The weights of experts, which are alike, wherever each of them lies.

    Attributes:
        first: the first expert's.
        addresses: `[num_experts, 2]`, int64, of each expert's codes and scales.
    """

    first: PackedWeight
    addresses: Tensor


def packed_experts(weights: Sequence[PackedWeight | None]) -> PackedExperts | None:
    """One description of all experts' weights, which must outlive it; None: there is one without,
    or they differ."""
    first = weights[0]
    if first is None:
        return None
    addresses = []
    for weight in weights:
        if weight is None or (weight.kind, weight[3:]) != (first.kind, first[3:]):
            return None
        scales = 0 if weight.scales is None else weight.scales.data_ptr()
        addresses.append((weight.codes.data_ptr(), scales))
    return PackedExperts(first, torch.tensor(addresses))
