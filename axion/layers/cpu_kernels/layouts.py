"""How the weights lie that `axion.layers.cpu_kernels.blocks` multiplies by: integers of a few bits,
of which neighbouring inputs share scales, as GGUF files have them."""

from __future__ import annotations

from dataclasses import dataclass

GROUP = 32
"""Inputs whose codes do."""


@dataclass(frozen=True)
class Layout:
    """How a type's numbers lie in memory: a weight is `number * scale + offset`.

    Codes: of 16 columns and 32 inputs, planes of some bits, one after the other. A plane of b bits
    is b lines of 16 words, a word of each column, whose bytes are of four neighbouring inputs: the
    lowest b bits of line i those from input 4 * i on, the next ones those from 4 * (b + i) on.

    Scales: of 16 columns and as many inputs as a span, those in 16 bits, then as many offsets, then
    factors in 8 bits, then those of offsets; of each the 16 columns lie beside each other.

    Attributes:
        planes: the bits of a code, the lowest first, in parts of 8, 4, 2 or 1.
        zero: a number is its code less this.
        numbers: what each code stands for, where that is not so.
        block_size: inputs that share a scale and an offset, in float16.
        group_size: inputs that share a factor of these; none: these are all there is.
        has_offset: there are offsets.
        is_bfloat16: scales are in bfloat16.
        unit: what all scales are multiplied by.
    """

    planes: tuple[int, ...]
    zero: int = 0
    numbers: tuple[int, ...] = ()
    block_size: int = 32
    group_size: int | None = None
    has_offset: bool = False
    is_bfloat16: bool = False
    unit: float = 1.0

    @property
    def span(self) -> int:
        """Inputs whose scales lie together."""
        return max(self.block_size, GROUP)

    @property
    def bias(self) -> int:
        """What makes no number negative."""
        return 128 if self.numbers else self.zero

    @property
    def num_halves(self) -> int:
        """Scales of a span, in 16 bits; as many offsets, if there are any."""
        return self.span // self.block_size

    @property
    def num_factors(self) -> int:
        """Factors of a span's scales, in 8 bits; as many of offsets."""
        return 0 if self.group_size is None else self.span // self.group_size

    @property
    def group_bytes(self) -> int:
        """Bytes of the codes of 32 inputs, of a column."""
        return sum(self.planes) * GROUP // 8

    @property
    def span_bytes(self) -> int:
        """Bytes of a span's scales and offsets, of a column."""
        return (2 * self.num_halves + self.num_factors) * (1 + self.has_offset)


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Of E2M1, doubled.
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, -1, -2, -3, -4, -6, -8, -12)
_IQ3_XXS = tuple(sign * number for sign in (1, -1) for number in (4, 12, 20, 28, 36, 44, 52, 62))
_IQ3_S = tuple(range(-15, 16, 2))
_IQ2 = (-43, -25, -8, 8, 25, 43)
# Eighths: -1, 0 or 1, and one eighth more or less.
_IQ1 = (-9, -7, -1, 1, 7, 9)

LAYOUTS = {
    "Q4_0": Layout((4,), zero=8),
    "Q4_1": Layout((4,), has_offset=True),
    "Q5_0": Layout((4, 1), zero=16),
    "Q5_1": Layout((4, 1), has_offset=True),
    "Q8_0": Layout((8,), zero=128),
    "Q2_K": Layout((2,), block_size=256, group_size=16, has_offset=True),
    "Q3_K": Layout((2, 1), zero=4, block_size=256, group_size=16),
    "Q4_K": Layout((4,), block_size=256, group_size=32, has_offset=True),
    "Q5_K": Layout((4, 1), block_size=256, group_size=32, has_offset=True),
    "Q6_K": Layout((4, 2), zero=32, block_size=256, group_size=16),
    "IQ4_NL": Layout((4,), numbers=_IQ4),
    "IQ4_XS": Layout((4,), numbers=_IQ4, block_size=256, group_size=32),
    "MXFP4": Layout((4,), numbers=_E2M1, is_bfloat16=True),
    "NVFP4": Layout((4,), numbers=_E2M1, block_size=16),
    "IQ3_XXS": Layout((4,), numbers=_IQ3_XXS, block_size=256, group_size=32, unit=0.25),
    "IQ3_S": Layout((4,), numbers=_IQ3_S, block_size=256, group_size=32),
    "IQ2_XXS": Layout((2, 1), numbers=_IQ2, block_size=256, group_size=32, unit=0.125),
    "IQ2_XS": Layout((2, 1), numbers=_IQ2, block_size=256, group_size=16, unit=0.125),
    "IQ2_S": Layout((2, 1), numbers=_IQ2, block_size=256, group_size=16, unit=0.125),
    "IQ1_S": Layout((2, 1), numbers=_IQ1, block_size=256, group_size=32, unit=0.125),
    "IQ1_M": Layout((2, 1), numbers=_IQ1, block_size=256, group_size=16, unit=0.125),
    "TQ1_0": Layout((2,), zero=1, block_size=256),
    "TQ2_0": Layout((2,), zero=1, block_size=256),
}
"""By the type's name."""
