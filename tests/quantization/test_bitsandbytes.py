"""What bitsandbytes stores, packed here and, in `data/bitsandbytes.safetensors`, by itself.

That file has a weight of 4 rows and 48 columns, quantized by bitsandbytes 0.50.2 on the CPU
(`quantize_4bit` with blocks of 64, and `int8_vectorwise_quant`), and as `expected` what the
portable version of its `dequantize_4bit`, and `int8_vectorwise_dequant`, made of that. (Its own
version for the CPU is wrong where a row ends within a block.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.errors import ModelLoadError
from axion.layers.moe import Router
from axion.quantization import rows
from axion.quantization.bitsandbytes import BitsAndBytesMethod
from axion.quantization.format import Source
from axion.quantization.layers import QuantizedLinear
from axion.quantization.stored import StoredTensor
from tests.quantization.pairs import CPU, Packed, assert_same, load, save_pair, weight_bytes

GOLDEN = load_file(Path(__file__).parent / "data" / "bitsandbytes.safetensors")
NUMBERS = {kind: GOLDEN[f"{kind}.weight.quant_map"].numpy() for kind in ("nf4", "fp4")}
NESTED_NUMBERS = GOLDEN["nf4-nested.weight.nested_quant_map"].numpy()
DTYPES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float32: "F32",
}


@pytest.mark.parametrize("name", ["nf4", "nf4-nested", "fp4", "int8"])
@pytest.mark.parametrize("max_piece", [1, 2**22])
def test_what_bitsandbytes_stored_is_what_it_reads(
    name: str, max_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_PIECE", max_piece)
    parts = {key.partition(".")[2]: t for key, t in GOLDEN.items() if key.startswith(f"{name}.")}
    expected = parts.pop("expected")
    stored = {
        key: StoredTensor(key, "file", tuple(t.shape), DTYPES[t.dtype], lambda t=t: t)
        for key, t in parts.items()
    }
    method = BitsAndBytesMethod({"quant_method": "bitsandbytes"})
    weight_format = method.format("proj", stored, 48, 4)
    assert weight_format is not None
    source = Source("proj", weight_format, 48, 4, stored)
    kernel = weight_format.kernel(source.read(CPU), torch.float32)
    torch.testing.assert_close(kernel.dequantize(torch.float32), expected, rtol=1e-6, atol=1e-7)
    x = torch.randn(3, 48)
    torch.testing.assert_close(kernel(x), x @ expected.T)


@dataclass(frozen=True)
class FourBit:
    """How a test packs."""

    kind: str = "nf4"
    block_size: int = 64
    is_nested: bool = False
    storage: torch.dtype = torch.uint8
    nested_block_size: int = 256
    offset: ClassVar[float] = 0.125

    def __call__(self, name: str, weight: Tensor) -> Packed | None:
        values, numbers = weight.flatten().numpy(), NUMBERS[self.kind]
        if len(values) % 16:
            return None
        padded = np.pad(values, (0, -len(values) % self.block_size))
        blocks = padded.reshape(-1, self.block_size)
        scales = np.abs(blocks).max(1)
        tensors, state = {}, {"quant_type": self.kind, "blocksize": self.block_size}
        tensors["weight.quant_map"] = torch.tensor(numbers)
        if self.is_nested:
            scales, nested = self._nest(scales)
            tensors |= {f"weight.{key}": torch.tensor(value) for key, value in nested.items()}
            state |= {
                "nested_blocksize": self.nested_block_size,
                "nested_offset": self.offset,
                "nested_dtype": "float32",
            }
        else:
            tensors["weight.absmax"] = torch.from_numpy(scales)
        codes = np.abs(blocks[..., None] / scales[:, None, None] - numbers).argmin(-1)
        meant = (numbers[codes] * scales[:, None]).flatten()[: len(values)]
        codes = codes.astype(np.uint8).flatten()[: len(values)]
        packed = torch.from_numpy(codes[::2] << 4 | codes[1::2])
        tensors["weight"] = packed.view(self.storage)[:, None]
        state |= {"dtype": "float32", "shape": list(weight.shape)}
        key = f"weight.quant_state.bitsandbytes__{self.kind}"
        tensors[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return Packed(tensors, torch.from_numpy(meant).view_as(weight))

    def _nest(self, scales: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What scales become, and what is stored of them."""
        blocks = np.arange(len(scales)) // self.nested_block_size
        rest = scales - np.float32(self.offset)
        absmax = np.array([np.abs(rest[blocks == i]).max() for i in range(blocks[-1] + 1)])
        codes = np.abs((rest / absmax[blocks])[:, None] - NESTED_NUMBERS).argmin(-1)
        meant = NESTED_NUMBERS[codes] * absmax[blocks] + np.float32(self.offset)
        return meant, {
            "absmax": codes.astype(np.uint8),
            "nested_absmax": absmax,
            "nested_quant_map": NESTED_NUMBERS,
        }

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.is_nested,
        }


@dataclass(frozen=True)
class EightBit:
    config: ClassVar = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": True,
        "llm_int8_threshold": 6.0,
    }

    def __call__(self, name: str, weight: Tensor) -> Packed:
        scales = weight.abs().amax(1)
        values = (weight * 127 / scales[:, None]).round()
        tensors = {"weight": values.to(torch.int8), "SCB": scales}
        if "o_proj" in name:
            tensors["weight_format"] = torch.tensor(0, dtype=torch.uint8)
        return Packed(tensors, values * (scales / 127)[:, None])


def attention(model: torch.nn.Module) -> Any:
    return model.model.layers[-1].self_attn


@pytest.mark.parametrize(
    ("case", "pack", "num_kernels"),
    [
        ("llama", FourBit(), 1),
        ("llama", FourBit("fp4"), 1),
        ("llama", FourBit(is_nested=True, nested_block_size=16), 1),
        # The last blocks of scales would be parts of two projections.
        ("llama", FourBit(is_nested=True), 3),
        # The same of blocks of weights: k and v have 2048.
        ("llama", FourBit(block_size=4096), 3),
        ("qwen3", FourBit("fp4", is_nested=True, storage=torch.bfloat16), 3),
        ("mixtral", FourBit(), 1),
        ("gpt2", FourBit(), 1),
        ("llama", EightBit(), 1),
        ("mixtral", EightBit(), 1),
    ],
    ids=str,
)
def test_each_way_to_pack_is_read_as_it_was_meant(
    case: str, pack: Any, num_kernels: int, tmp_path: Path
) -> None:
    def pack_transposed(name: str, weight: Tensor) -> Packed | None:
        # What GPT-2 stores transposed is not where it is quantized.
        packed = pack(name, weight.T.contiguous()) if ".c_" in name else None
        return packed and packed._replace(weight=packed.weight.T)

    pack_layer = pack_transposed if case == "gpt2" else pack
    quantized, plain = save_pair(case, tmp_path, pack_layer, pack.config)
    model = load(quantized)
    layer = model.model.layers[-1].self_attn.qkv_proj
    assert isinstance(layer, QuantizedLinear)
    assert len(layer.kernels) == num_kernels
    assert_same(model, load(plain))


@pytest.mark.parametrize("case", ["mixtral", "minimax-m2"])
def test_a_router_that_is_quantized_is_dequantized_once(case: str, tmp_path: Path) -> None:
    pack = FourBit()
    quantized, plain = save_pair(case, tmp_path, pack, pack.config)
    tensors, weights = (load_file(path / "model.safetensors") for path in (quantized, plain))
    for name in [name for name in weights if name.endswith(".gate.weight")]:
        packed = pack(name, tensors.pop(name))
        assert packed is not None
        layer = name.removesuffix(".weight")
        tensors |= {f"{layer}.{key}": tensor for key, tensor in packed.tensors.items()}
        weights[name] = packed.weight
    for path, stored in ((quantized, tensors), (plain, weights)):
        save_file({n: t.contiguous() for n, t in stored.items()}, path / "model.safetensors")
    model = load(quantized)
    gate = model.model.layers[0].mlp.gate
    assert isinstance(gate, Router)
    assert gate.weight.dtype == torch.float32
    assert_same(model, load(plain))


@pytest.mark.parametrize(
    ("pack", "bits"),
    [(FourBit(), 4.5), (FourBit(is_nested=True, nested_block_size=16), 4.2), (EightBit(), 8.7)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_take_their_bits_and_little_more(
    pack: Any, bits: float, dtype: str, tmp_path: Path
) -> None:
    quantized, plain = (
        load(path, dtype) for path in save_pair("llama", tmp_path, pack, pack.config)
    )
    layers = [module for module in quantized.modules() if isinstance(module, QuantizedLinear)]
    num_weights = sum(layer.in_features * layer.out_features for layer in layers)
    itemsize = 4 if dtype == "float32" else 2
    saved = weight_bytes(plain) - weight_bytes(quantized)
    assert saved >= num_weights * (itemsize - bits / 8)


Q_PROJ = "model.layers.0.self_attn.q_proj"
STATE = f"{Q_PROJ}.weight.quant_state.bitsandbytes__nf4"


def state(tensors: dict[str, Tensor], **fields: Any) -> None:
    values = json.loads(bytes(tensors[STATE].tolist())) | fields
    tensors[STATE] = torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    tensors[f"{Q_PROJ}.{new}"] = tensors.pop(f"{Q_PROJ}.{old}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: state(t, quant_type="fp4"), "expected quant_type 'nf4', got 'fp4'"),
        (lambda t: state(t, shape=[64, 32]), r"expected shape \[64, 64\], got \[64, 32\]"),
        (lambda t: state(t, blocksize=60), "a power of two for blocksize, got 60"),
        (lambda t: state(t, blocksize=True), "a power of two for blocksize, got True"),
        (lambda t: state(t, nested_blocksize=None), "for nested_blocksize, got None"),
        (lambda t: state(t, nested_offset=float("nan")), "a number for nested_offset, got nan"),
        (lambda t: state(t, nested_offset=10**400), "a number for nested_offset, got 1000"),
        (lambda t: t.update({STATE: torch.ones(9, dtype=torch.uint8)}), "hold a JSON object"),
        (lambda t: t.update({STATE: torch.ones(2**17, dtype=torch.uint8)}), "hold a JSON object"),
        (
            lambda t: rename(t, STATE.removeprefix(f"{Q_PROJ}."), "weight.quant_state.other__af4"),
            "as weight.quant_state.other__af4, which is not supported",
        ),
        (lambda t: t.pop(f"{Q_PROJ}.weight.quant_map"), "weight.quant_map is missing"),
        (lambda t: t.pop(f"{Q_PROJ}.weight.absmax"), "weight.absmax is missing"),
        (
            lambda t: t.update({f"{Q_PROJ}.weight": t[f"{Q_PROJ}.weight"][1:]}),
            r"q_proj.weight has shape \[2047, 1\], expected \[2048, 1\]",
        ),
    ],
)
def test_what_is_wrong_with_a_layer_is_named(
    change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    pack = FourBit(is_nested=True)
    path = save_pair("llama", tmp_path, pack, pack.config)[0]
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        load(path)


def test_a_layout_that_is_not_by_rows_is_refused(tmp_path: Path) -> None:
    pack = EightBit()
    path = save_pair("llama", tmp_path, pack, pack.config)[0]
    tensors = load_file(path / "model.safetensors")
    tensors[f"{Q_PROJ}.weight_format"] = torch.tensor(2, dtype=torch.uint8)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"{Q_PROJ}.weight_format is 2"):
        load(path)
