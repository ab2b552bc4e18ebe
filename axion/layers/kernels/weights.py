"""Weights of a few bits as Triton's kernels read them: where they lie, and what codes mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from axion.layers.transfer import to_device

BITS = {"int8": 8, "uint8": 8, "e4m3": 8, "uint4": 4, "e2m1": 4, "table": 4}
"""Of a code, by its kind."""
_SCALE_KINDS = {torch.float8_e8m0fnu: "e8m0", torch.float8_e4m3fn: "e4m3"}


class LowBitWeight(NamedTuple):
    """`weight = (number(code) - zero) * scale * factor`; all tensors are contiguous.

    Attributes:
        kind: the numbers that codes are; `table`: those of `numbers`.
        codes: `[out_features, words of a row]`, int32: the codes of a row one after another, the
            earlier input's in the lower bits.
        block: outputs and inputs that share a scale and a zero; the inputs are a power of two, or
            all.
        scales: `[out_features / block[0], in_features / block[1]]`, rounded up; floating-point
            numbers, E8M0 and E4M3 too; None: all are 1.
        zeros: the same, uint8; None: all are 0.
        factors: `[out_features]`, float32; outputs are multiplied by them, which is less work than
            scales are; None: all are 1.
        numbers: `[16]`, float32; what the codes of a `table` stand for.
    """

    kind: Literal["int8", "uint8", "e4m3", "uint4", "e2m1", "table"]
    codes: Tensor
    block: tuple[int, int]
    scales: Tensor | None = None
    zeros: Tensor | None = None
    factors: Tensor | None = None
    numbers: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor | None]:
        """Those that a kernel is given, in its order."""
        scales = self.scales
        if self.scale_kind:
            assert scales is not None
            scales = scales.view(torch.uint8)  # Triton does not know these formats on every GPU
        return [self.codes, scales, self.zeros, self.factors, self.numbers]

    @property
    def scale_kind(self) -> str:
        """The format of scales of eight bits; empty: others."""
        return "" if self.scales is None else _SCALE_KINDS.get(self.scales.dtype, "")

    def rows(self, start: int, end: int) -> LowBitWeight:
        """Some outputs; `start` is a multiple of `block[0]`."""
        of_blocks = slice(start // self.block[0], -(-end // self.block[0]))
        return self._replace(
            codes=self.codes[start:end],
            scales=None if self.scales is None else self.scales[of_blocks],
            zeros=None if self.zeros is None else self.zeros[of_blocks],
            factors=None if self.factors is None else self.factors[start:end],
        )


class LowBitExperts(NamedTuple):
    """The weights of experts, which are alike, wherever each of them lies.

    Attributes:
        first: the first expert's.
        offsets: `[num_tensors, num_experts]`, int64; how far behind the first expert's tensors,
            those that there are, each expert's are, in elements.
    """

    first: LowBitWeight
    offsets: Tensor


def as_words(codes: Tensor) -> Tensor:
    """Rows of bytes `[n, 4 * m]` as the words of `LowBitWeight`, `[n, m]`."""
    return codes.view(torch.int32)


def low_bit_experts(weights: Sequence[LowBitWeight | None]) -> LowBitExperts | None:
    """One description of all experts' weights; None: there is one without, or they differ."""
    first = weights[0]
    if first is None:
        return None
    of_first = _given(first)
    offsets = []
    for weight in weights:
        if weight is None or _layout(weight) != _layout(first):
            return None
        pairs = zip(_given(weight), of_first, strict=True)
        offsets.append([(own.data_ptr() - x.data_ptr()) // x.element_size() for own, x in pairs])
    table = np.array(offsets, np.int64).T.copy()
    assert not (table[0] % 4).any(), "codes are read 16 bytes at a time"
    return LowBitExperts(first, to_device(table, first.codes.device))


def _given(weight: LowBitWeight) -> list[Tensor]:
    return [x for x in weight.tensors if x is not None]


def _layout(weight: LowBitWeight) -> object:
    assert all(x.is_contiguous() for x in _given(weight))
    shapes = [None if x is None else (x.shape, x.dtype) for x in weight.tensors]
    return weight.kind, weight.scale_kind, weight.block, shapes
