"""Weights of a few bits as Triton's kernels read them: where they lie, and what codes mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from axion.layers.transfer import to_device


class LowBitWeight(NamedTuple):
    """`weight = (number(code) - zero) * scale`; all tensors are contiguous.

    Attributes:
        kind: the numbers that codes are; those of four bits lie two to a byte, that of the earlier
            input in the lower half.
        codes: `[out_features, in_features]` or `[out_features, in_features / 2]`, bytes.
        scales: `[out_features / block[0], in_features / block[1]]`, rounded up; floating-point
            numbers, or the exponents of powers of two (E8M0) as uint8.
        zeros: the same, uint8; None: all are 0.
        block: outputs and inputs that share a scale; the inputs are a power of two, or all.
    """

    kind: Literal["int8", "uint8", "e4m3", "uint4", "e2m1"]
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    block: tuple[int, int]

    @property
    def tensors(self) -> list[Tensor]:
        """Codes, scales and, where there are any, zeros."""
        return [x for x in (self.codes, self.scales, self.zeros) if x is not None]


class LowBitExperts(NamedTuple):
    """The weights of experts, which are alike, wherever each of them lies.

    Attributes:
        first: the first expert's.
        offsets: `[2 or 3, num_experts]`, int64; how far behind the first expert's codes, scales and
            zeros each expert's are, in elements.
    """

    first: LowBitWeight
    offsets: Tensor


def low_bit_experts(weights: Sequence[LowBitWeight | None]) -> LowBitExperts | None:
    """One description of all experts' weights; None: there is one without, or they differ."""
    first = weights[0]
    if first is None:
        return None
    offsets = []
    for weight in weights:
        if weight is None or _layout(weight) != _layout(first):
            return None
        pairs = zip(weight.tensors, first.tensors, strict=True)
        offsets.append([(own.data_ptr() - x.data_ptr()) // x.element_size() for own, x in pairs])
    table = np.array(offsets, np.int64).T.copy()
    assert not (table[0] % 16).any(), "codes are read 16 at a time"
    return LowBitExperts(first, to_device(table, first.codes.device))


def _layout(weight: LowBitWeight) -> object:
    assert all(x.is_contiguous() for x in weight.tensors)
    return weight.kind, weight.block, [(x.shape, x.dtype) for x in weight.tensors]
