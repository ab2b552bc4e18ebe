"""bitsandbytes: LLM.int8() (arXiv:2208.07339), NF4 and FP4 (QLoRA, arXiv:2305.14314).

In eight bits, of a layer there are `weight` `[out_features, in_features]`, int8, and `SCB`
`[out_features]`, 127 times what one of them stands for. LLM.int8() rounds the inputs to int8 as
well, but for columns above `llm_int8_threshold`; here none are, so that the threshold changes
nothing.

In four bits there are `weight`, two codes in a byte, the high half first; `weight.absmax`, a scale
for each block of weights, counted through all rows; `weight.quant_map`, what the codes stand for;
and `weight.quant_state.bitsandbytes__nf4` (or `fp4`), JSON with the rest. Where scales are
quantized too, `weight.absmax` holds bytes, for which `weight.nested_quant_map` has numbers, times
`weight.nested_absmax` of their block, plus `nested_offset`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd, isfinite, prod

import torch
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.layers import kernels
from axion.layers.kernels.weights import LowBitWeight, as_words
from axion.quantization.format import WeightFormat
from axion.quantization.int8 import Int8Kernel
from axion.quantization.kernel import Kernel
from axion.quantization.method import StoredQuantized
from axion.quantization.rows import RowKernel, look_up, pair_table
from axion.quantization.stored import Expected, StoredTensor

_STATE = "weight.quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_MAX_STATE_BYTES = 2**16
# Bytes are sometimes stored as numbers of another format (bnb_4bit_quant_storage).
_STORAGE = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True)
class Int8Format(WeightFormat):
    has_layout: bool

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        expected = {
            "weight": Expected((out_features, in_features), ("I8",)),
            "SCB": Expected((out_features,), ("F32",)),
        }
        return expected | ({"weight_format": Expected((), ("U8",))} if self.has_layout else {})

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        return {"codes": tensors["weight"], "scale": tensors["SCB"] / 127}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return Int8Kernel(**tensors, rounds_input=False)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return out_features * (in_features + 4)


class FourBitKernel(RowKernel):
    """Dequantizes as it multiplies.

    Args:
        codes: uint8, the high half first.
        scales: one for each block; float32, or uint8 where they are quantized, which they do not
            stay where Triton's kernels are to read them.
        nested_scales, offsets: for each block of scales, where they are quantized.
        numbers: what the 16 codes stand for.
        nested_numbers: what the 256 codes of scales stand for, where they are quantized.
    """

    nested_scales: Tensor | None
    offsets: Tensor
    nested_numbers: Tensor

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        nested_scales: Tensor | None = None,
        offsets: Tensor | None = None,
        *,
        in_features: int,
        out_features: int,
        block_size: int,
        nested_block_size: int,
        numbers: Tensor,
        nested_numbers: Tensor | None,
    ) -> None:
        # Pieces begin at blocks.
        super().__init__(in_features, out_features, block_size // gcd(in_features, block_size))
        self.block_size, self.nested_block_size = block_size, nested_block_size
        # The low half first, as in other formats.
        self.codes = nn.Parameter(codes << 4 | codes >> 4, requires_grad=False)
        self.scales = nn.Parameter(scales.clone(), requires_grad=False)
        for name, tensor in (("nested_scales", nested_scales), ("offsets", offsets)):
            self.register_parameter(
                name, None if tensor is None else nn.Parameter(tensor.clone(), requires_grad=False)
            )
        table = pair_table(numbers.repeat(16), numbers.repeat_interleave(16))
        self.register_buffer("table", table.to(codes.device), persistent=False)
        self.register_buffer("numbers", numbers.to(codes.device), persistent=False)
        if nested_numbers is not None:
            nested_numbers = nested_numbers.to(codes.device)
        self.register_buffer("nested_numbers", nested_numbers, persistent=False)
        if self.nested_scales is not None and self._is_known() and kernels.run_on(codes):
            self.scales = nn.Parameter(self._scales(0, len(scales)), requires_grad=False)
            self.nested_scales = None

    def _is_known(self) -> bool:
        return self.block_size in kernels.LOW_BIT_GROUPS and not self.in_features % self.block_size

    def low_bit(self) -> LowBitWeight | None:
        if self.nested_scales is not None or not self._is_known():
            return None
        codes = as_words(self.codes.view(self.out_features, -1))
        scales = self.scales.view(self.out_features, -1)
        return LowBitWeight("table", codes, (1, self.block_size), scales, numbers=self.numbers)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        first, last = start * self.in_features, end * self.in_features
        numbers = look_up(self.table, self.codes[first // 2 : -(-last // 2)])[: last - first]
        scales = self._scales(first // self.block_size, -(-last // self.block_size))
        if len(numbers) % self.block_size:
            scales = scales.repeat_interleave(self.block_size)[: len(numbers)]
            numbers.mul_(scales)
        else:
            numbers.view(-1, self.block_size).mul_(scales[:, None])
        return numbers.to(dtype).view(end - start, self.in_features)

    def _scales(self, start: int, end: int) -> Tensor:
        """Of these blocks."""
        scales = self.scales[start:end]
        if self.nested_scales is None:
            return scales
        blocks = torch.arange(start, end, device=scales.device) // self.nested_block_size
        numbers = self.nested_numbers.index_select(0, scales.int())
        return numbers.mul_(self.nested_scales[blocks]).add_(self.offsets[blocks])


@dataclass(frozen=True)
class FourBitFormat(WeightFormat):
    """
    Attributes:
        kind: `nf4` or `fp4`.
        nested_block_size: scales of a block; 0 where they are not quantized.
        numbers, nested_numbers: float32; what codes, and codes of scales, stand for.
        storage: the number format as which bytes of codes are stored.
        num_state_bytes: of the JSON.
        offset: what is added to scales that are quantized.
        joinable: no block has weights of two projections.
    """

    kind: str
    in_features: int
    block_size: int
    nested_block_size: int
    numbers: bytes
    nested_numbers: bytes
    storage: str = field(compare=False)
    num_state_bytes: int = field(compare=False)
    offset: float = field(compare=False)
    joinable: bool = field(compare=False)

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        num_bytes, blocks, nested_blocks = self._sizes(in_features, out_features)
        expected = {
            "weight": Expected((num_bytes // _STORAGE[self.storage], 1), (self.storage,)),
            "weight.absmax": Expected((blocks,), ("U8" if nested_blocks else "F32",)),
            "weight.quant_map": Expected((16,), ("F32",)),
            _STATE + self.kind: Expected((self.num_state_bytes,), ("U8",)),
        }
        if nested_blocks:
            expected["weight.nested_absmax"] = Expected((nested_blocks,), ("F32",))
            expected["weight.nested_quant_map"] = Expected((256,), ("F32",))
        return expected

    def _sizes(self, in_features: int, out_features: int) -> tuple[int, int, int]:
        """Bytes of codes, blocks of them, and blocks of scales."""
        num_weights = in_features * out_features
        blocks = -(-num_weights // self.block_size)
        nested = -(-blocks // self.nested_block_size) if self.nested_block_size else 0
        return (num_weights + 1) // 2, blocks, nested

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        unpacked = {
            "codes": tensors["weight"].view(torch.uint8).flatten(),
            "scales": tensors["weight.absmax"],
        }
        if self.nested_block_size:
            nested_scales = tensors["weight.nested_absmax"]
            unpacked["nested_scales"] = nested_scales
            unpacked["offsets"] = torch.full_like(nested_scales, self.offset)
        return unpacked

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return FourBitKernel(
            **tensors,
            in_features=self.in_features,
            out_features=2 * len(tensors["codes"]) // self.in_features,
            block_size=self.block_size,
            nested_block_size=self.nested_block_size,
            numbers=_floats(self.numbers),
            nested_numbers=_floats(self.nested_numbers) if self.nested_block_size else None,
        )

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        num_bytes, blocks, nested_blocks = self._sizes(in_features, out_features)
        return num_bytes + blocks * (1 if nested_blocks else 4) + nested_blocks * 8


class BitsAndBytesMethod(StoredQuantized):
    quant_methods = ("bitsandbytes",)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        if "SCB" in tensors:
            _check_layout(name, tensors.get("weight_format"))
            return Int8Format("weight_format" in tensors)
        states = [part for part in tensors if part.startswith("weight.quant_state.")]
        if not states:
            return None
        kind = states[0].removeprefix(_STATE)
        if len(states) > 1 or kind not in _KINDS:
            raise ModelLoadError(
                f"{name} is quantized by bitsandbytes as {', '.join(states)[:200]}, which is not "
                f"supported: expected one of {', '.join(_STATE + kind for kind in _KINDS)}."
            )
        weight, stored_state = tensors.get("weight"), tensors[states[0]]
        state = _State(name, stored_state)
        if state.values.get("quant_type") != kind:
            raise state.error(f"quant_type {kind!r}", "quant_type")
        if state.values.get("shape") != [out_features, in_features]:
            raise state.error(f"shape [{out_features}, {in_features}]", "shape")
        is_nested = "weight.nested_absmax" in tensors
        block_size = state.size("blocksize")
        nested_block_size = state.size("nested_blocksize") if is_nested else 0
        return FourBitFormat(
            kind,
            in_features,
            block_size,
            nested_block_size,
            _read_numbers(tensors.get("weight.quant_map"), 16),
            _read_numbers(tensors.get("weight.nested_quant_map"), 256) if is_nested else b"",
            weight.dtype if weight and weight.dtype in _STORAGE else "U8",
            prod(stored_state.shape),
            state.number("nested_offset") if is_nested else 0.0,
            in_features * out_features % (block_size * max(nested_block_size, 1)) == 0,
        )


class _State:
    """What is stored as JSON of a layer in four bits.

    Raises:
        ModelLoadError: it is none.
    """

    def __init__(self, name: str, stored: StoredTensor) -> None:
        self.name = name
        try:
            if len(stored.shape) != 1 or stored.shape[0] > _MAX_STATE_BYTES or stored.dtype != "U8":
                raise ValueError
            self.values = json.loads(bytes(stored.read().tolist()))
            if not isinstance(self.values, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise ModelLoadError(f"{stored.name} does not hold a JSON object.") from None

    def error(self, expected: str, key: str) -> ModelLoadError:
        got = repr(self.values.get(key))[:80]
        return ModelLoadError(
            f"The state that bitsandbytes stored of {self.name} does not fit: expected {expected}, "
            f"got {got}."
        )

    def size(self, key: str) -> int:
        value = self.values.get(key)
        # A power of two.
        if type(value) is not int or not 2 <= value <= 2**20 or value & (value - 1):
            raise self.error(f"a power of two for {key}", key)
        return value

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if type(value) is not float or not isfinite(value):
            raise self.error(f"a number for {key}", key)
        return value


def _check_layout(name: str, stored: StoredTensor | None) -> None:
    if stored is not None and stored.shape == () and (layout := int(stored.read())):
        raise ModelLoadError(
            f"{name}.weight_format is {layout}, which is not supported: expected 0, for rows."
        )


def _read_numbers(stored: StoredTensor | None, count: int) -> bytes:
    if stored is None or stored.shape != (count,) or stored.dtype != "F32":
        return b""  # the loader says what is wrong
    return stored.read().numpy().tobytes()


def _floats(numbers: bytes) -> Tensor:
    return torch.frombuffer(bytearray(numbers), dtype=torch.float32)
