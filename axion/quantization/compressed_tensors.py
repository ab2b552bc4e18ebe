"""compressed-tensors, as llm-compressor writes them
(https://github.com/vllm-project/compressed-tensors).

A config has groups of layers, each with a scheme for their weights and one for their inputs. What
is stored follows from the group's format: `weight` as int8 or E4M3, or `weight_packed`, integers of
four or eight bits in words of 32, the lowest bits first, which were shifted up to be unsigned; and
`weight_scale`, `weight_zero_point`, and `weight_g_idx`, the group of each input where they are not
in order. Numbers of four bits (E2M1) are `weight_packed` too, two in a byte: MXFP4 with scales that
are powers of two (E8M0), NVFP4 with scales in E4M3, divided by `weight_global_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization import integers
from axion.quantization.format import WeightFormat
from axion.quantization.fp8 import E4M3, NOT_NEEDED, Float8Format, block_size
from axion.quantization.int8 import Int8Kernel
from axion.quantization.kernel import Kernel
from axion.quantization.method import StoredQuantized
from axion.quantization.mxfp4 import Mxfp4PackedFormat, check_in_blocks
from axion.quantization.nvfp4 import BLOCK, Nvfp4Format
from axion.quantization.patterns import known_as, matches
from axion.quantization.stored import Expected, StoredTensor

_WORD = 32
_STRATEGIES = ("tensor", "channel", "group", "block")
_INDICES = ("I32", "I64")
# What a group calls every layer that no other names.
_ANY = "Linear"


@dataclass(frozen=True)
class Int8Format(WeightFormat):
    """Integers of eight bits, as they are, with a scale for each output or for all.

    Attributes:
        rounds_input: inputs are meant to be rounded too.
        scale_shape: of what is stored, where it is not one scale an output.
    """

    rounds_input: bool
    scale_shape: tuple[int, ...] | None

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        scale = (out_features, 1) if self.scale_shape is None else self.scale_shape
        return {
            "weight": Expected((out_features, in_features), ("I8",)),
            "weight_scale": Expected(scale),
        }

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        scale = tensors["weight_scale"].float().flatten().expand(out_features)
        return {"codes": tensors["weight"], "scale": scale}

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return Int8Kernel(**tensors, rounds_input=self.rounds_input)

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        return out_features * (in_features + 4)


@dataclass(frozen=True, kw_only=True)
class GroupedFormat(integers.IntegerFormat):
    """Integers with a scale for each group of a row, and perhaps a zero point.

    Attributes:
        is_packed: they are stored in words.
    """

    is_packed: bool
    has_zeros: bool

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        per_word = _WORD // self.bits
        num_groups = -(-in_features // self.group_size)
        expected = {"weight_scale": Expected((out_features, num_groups), (self.scales,))}
        if self.is_packed:
            columns = -(-in_features // per_word)
            expected["weight_packed"] = Expected((out_features, columns), ("I32",))
            expected["weight_shape"] = Expected((2,), _INDICES)
        else:
            expected["weight"] = Expected((out_features, in_features), ("I8",))
        if self.has_zeros:
            rows = -(-out_features // per_word) if self.is_packed else out_features
            dtype = "I32" if self.is_packed else "I8"
            expected["weight_zero_point"] = Expected((rows, num_groups), (dtype,))
        if not self.is_ordered:
            expected["weight_g_idx"] = Expected((in_features,), _INDICES)
        return expected

    def unpack(
        self, tensors: dict[str, Tensor], in_features: int, out_features: int
    ) -> dict[str, Tensor]:
        # What is signed becomes unsigned; both the codes and the zero points, so that the
        # difference stays.
        if self.is_packed:
            codes = integers.as_bytes(tensors["weight_packed"])
        else:
            codes = _unsigned(tensors["weight"])
        scales = tensors["weight_scale"]
        if not self.has_zeros:
            zeros = torch.full_like(scales, 2 ** (self.bits - 1), dtype=torch.uint8)
        elif self.is_packed:
            words = integers.as_bytes(tensors["weight_zero_point"].T)
            zeros = integers.unpack(words, self.bits)[:, :out_features].T
        else:
            zeros = _unsigned(tensors["weight_zero_point"])
        unpacked = {"codes": codes, "scales": scales, "zeros": zeros}
        if not self.is_ordered:
            unpacked["groups"] = tensors["weight_g_idx"]
        return unpacked

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        codes = tensors["codes"]
        if self._is_by_output(codes.shape[1] * 8 // self.bits):
            signed = (codes.to(torch.int16) - 128).to(torch.int8)
            return Int8Kernel(signed, tensors["scales"].flatten(), rounds_input=False)
        return super().kernel(tensors, dtype)

    def _is_by_output(self, in_features: int) -> bool:
        """Whether it is eight bits, and a scale for each output."""
        is_one_group = self.group_size >= in_features
        return self.bits == 8 and is_one_group and not self.has_zeros and self.is_ordered

    def num_bytes(self, in_features: int, out_features: int, dtype: torch.dtype) -> int:
        if self._is_by_output(in_features):
            return out_features * (in_features + 4)
        return super().num_bytes(in_features, out_features, dtype)


def _unsigned(codes: Tensor) -> Tensor:
    return (codes.to(torch.int16) + 128).to(torch.uint8)


@dataclass(frozen=True)
class _Scheme:
    """What a config group says of its layers.

    Attributes:
        group_size: inputs that share a scale; None: all of an output.
    """

    targets: tuple[str, ...]
    bits: int
    group_size: int | None
    rounds_input: bool
    block: tuple[int, int] | None


class PackedFloats(StoredQuantized):
    """NVFP4, MXFP4 and E4M3 under the names that llm-compressor has, without its config: what is
    stored says it all."""

    ignored_tensors = (*NOT_NEEDED, r".*\.(input|output|[qkv])_(zero_point|global_scale)")

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        packed, weight = tensors.get("weight_packed"), tensors.get("weight")
        if packed is not None and packed.dtype == "U8":
            return _e2m1(name, tensors, in_features)
        if weight is not None and weight.dtype == E4M3:
            scale = tensors.get("weight_scale")
            return Float8Format.of("weight_scale", scale, self.block(name), out_features)
        return None

    def block(self, name: str) -> tuple[int, int] | None:
        """Rows and columns of a layer's weight that share a scale; None: it has one an output."""
        return None


class CompressedTensors(PackedFloats):
    quant_methods = ("compressed-tensors",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise ModelLoadError("config.json: the quantization's config_groups must be an object.")
        self._schemes = [_scheme(str(name), group) for name, group in groups.items()]
        sparsity = config.get("sparsity_config") or {}
        if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
            raise _unsupported(f"sparse weights ({sparsity!r:.80})")
        if config.get("transform_config"):
            raise _unsupported("a transform_config")

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        if (floats := super().format(name, tensors, in_features, out_features)) is not None:
            return floats
        packed, weight = tensors.get("weight_packed"), tensors.get("weight")
        if packed is None and (weight is None or weight.dtype != "I8"):
            return None
        scheme, scale = self._find(name), tensors.get("weight_scale")
        if scheme.bits == 4 and packed is None:
            raise _unsupported("weights of 4 bits that are stored in 8")
        shape = (out_features, 1) if scale is None else scale.shape
        has_zeros = "weight_zero_point" in tensors
        if packed is None and not has_zeros and shape in ((), (1,), (1, 1), (out_features, 1)):
            is_by_row = shape == (out_features, 1)
            return Int8Format(scheme.rounds_input, None if is_by_row else tuple(shape))
        if in_features % (_WORD // scheme.bits):
            raise _unsupported(f"{in_features} inputs, which do not fill their words ({name:.100})")
        return GroupedFormat(
            bits=scheme.bits,
            group_size=scheme.group_size or in_features,
            scales="F32" if scale is None else scale.dtype,
            is_ordered="weight_g_idx" not in tensors,
            is_packed=packed is not None,
            has_zeros=has_zeros,
        )

    def block(self, name: str) -> tuple[int, int] | None:
        return self._find(name).block

    def _find(self, name: str) -> _Scheme:
        """The scheme of a layer: a group that names it comes before one that names its kind."""
        if len(self._schemes) == 1:
            return self._schemes[0]
        for own in known_as(name):
            for scheme in self._schemes:
                if any(_names(target, own) for target in scheme.targets):
                    return scheme
        for scheme in self._schemes:
            if _ANY in scheme.targets:
                return scheme
        raise ModelLoadError(f"config.json: no group of the quantization has {name:.200}.")


def _e2m1(
    name: str, tensors: Mapping[str, StoredTensor], in_features: int
) -> Nvfp4Format | Mxfp4PackedFormat:
    factor = tensors.get("weight_global_scale")
    if factor is None:
        check_in_blocks(name, in_features)
        return Mxfp4PackedFormat("weight_packed", "weight_scale")
    check_in_blocks(name, in_features, BLOCK)
    return Nvfp4Format("weight_packed", "weight_global_scale", factor.shape, divides=True)


def _names(target: str, layer: str) -> bool:
    if target.startswith("re:"):
        return matches(target.removeprefix("re:"), layer)
    return target == layer


def _scheme(name: str, group: Any) -> _Scheme:
    group = group if isinstance(group, dict) else {}
    targets, weights, inputs = (
        group.get(key) for key in ("targets", "weights", "input_activations")
    )
    if not isinstance(targets, list) or not isinstance(weights, dict):
        raise ModelLoadError(
            f"config.json: the quantization's {name:.80} lacks targets or weights."
        )
    kind, bits, strategy = (weights.get(key) for key in ("type", "num_bits", "strategy"))
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 4), ("float", 8)):
        raise _unsupported(f"weights of type {kind!r:.20} with {bits!r:.20} bits")
    if strategy not in _STRATEGIES and (bits, kind, strategy) != (4, "float", "tensor_group"):
        raise _unsupported(f"the strategy {strategy!r:.40} for weights")
    group_size = weights.get("group_size") if strategy == "group" else None
    if strategy == "group" and not (type(group_size) is int and group_size > 0):
        raise _unsupported(f"groups of {group_size!r:.20} inputs")
    return _Scheme(
        targets=tuple(map(str, targets)),
        bits=int(bits),
        group_size=group_size,
        rounds_input=isinstance(inputs, dict) and inputs.get("num_bits") == 8,
        block=block_size(weights.get("block_structure")) if strategy == "block" else None,
    )


def _unsupported(what: str) -> ModelLoadError:
    return ModelLoadError(
        f"The checkpoint is quantized (compressed-tensors) with {what}, which is not supported. "
        "Supported: integer weights of 4 and 8 bits, E4M3, NVFP4 and MXFP4, dense, by tensor, "
        "channel, group or block."
    )
