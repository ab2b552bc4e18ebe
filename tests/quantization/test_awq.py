"""AWQ checkpoints, packed here as AutoAWQ packs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.awq import AwqMethod
from axion.quantization.integers import AtenInt4Kernel
from axion.quantization.layers import QuantizedLinear
from tests.quantization.pairs import Packed, assert_same, load, save_pair, weight_bytes

ORDERS = {"gemm": [0, 2, 4, 6, 1, 3, 5, 7], "gemv": list(range(8))}


def pack_words(codes: np.ndarray, order: list[int]) -> Tensor:
    """`[n, columns]` to int32 `[n, columns / 8]`: of each eight, `order[0]` in the lowest bits."""
    codes = codes.reshape(len(codes), -1, 8)[:, :, order].astype(np.uint32)
    words = np.bitwise_or.reduce(codes << np.arange(0, 32, 4, dtype=np.uint32), axis=-1)
    return torch.from_numpy(words.view(np.int32))


@dataclass(frozen=True)
class Awq:
    """How a test packs."""

    version: str = "gemm"
    group_size: int = 32

    def __call__(self, name: str, weight: Tensor) -> Packed | None:
        out_features, in_features = weight.shape
        if out_features % 8 or in_features % self.group_size:
            return None
        size = in_features if self.group_size == -1 else self.group_size
        groups = weight.numpy().reshape(out_features, -1, size)
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scales = ((high - low) / 15).astype(np.float16)
        wide = scales.astype(np.float32)
        zeros = np.clip(np.round(-low / wide), 0, 15).astype(np.int64)
        codes = np.clip(np.round(groups / wide[..., None]) + zeros[..., None], 0, 15)
        meant = ((codes - zeros[..., None]) * wide[..., None]).reshape(weight.shape)
        codes = codes.astype(np.int64).reshape(weight.shape)
        order = ORDERS[self.version]
        if self.version == "gemm":
            tensors = {
                "qweight": pack_words(codes.T, order),
                "qzeros": pack_words(zeros.T, order),
                "scales": torch.from_numpy(scales.T.copy()),
            }
        else:
            # Room for multiples of eight groups, and of more words the smaller groups are.
            words = {32: 4, 64: 2}.get(size, 1)
            room = ((0, 0), (0, 8 * words - zeros.shape[1]))
            tensors = {
                "qweight": pack_words(codes, order),
                "qzeros": pack_words(np.pad(zeros, room), order),
                "scales": torch.from_numpy(np.pad(scales, room)),
            }
        return Packed(tensors, torch.from_numpy(meant.astype(np.float32)))

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group_size,
            "zero_point": True,
            "version": self.version,
            "modules_to_not_convert": ["lm_head"],
        }


def attention(model: torch.nn.Module) -> Any:
    return model.model.layers[-1].self_attn


@pytest.mark.parametrize(
    ("case", "awq"),
    [
        ("llama", Awq()),
        ("llama", Awq(group_size=-1)),
        ("llama", Awq("gemv")),
        ("llama", Awq("gemv", group_size=64)),
        ("qwen3", Awq(group_size=16)),
        ("mixtral", Awq()),
    ],
    ids=str,
)
def test_each_way_to_pack_is_read_as_it_was_meant(case: str, awq: Awq, tmp_path: Path) -> None:
    quantized, plain = (load(path) for path in save_pair(case, tmp_path, awq, awq.config))
    qkv_proj = attention(quantized).qkv_proj
    assert isinstance(qkv_proj, QuantizedLinear)
    assert len(qkv_proj.kernels) == 1
    for name, layer in quantized.named_modules():
        if isinstance(layer, QuantizedLinear) and "experts" not in name:
            expected = plain.get_submodule(name).weight
            assert torch.equal(layer.dequantize(torch.float32), expected), name
    assert_same(quantized, plain)


def test_in_bfloat16_aten_multiplies(tmp_path: Path) -> None:
    awq = Awq()
    quantized, plain = (
        load(path, "bfloat16") for path in save_pair("llama", tmp_path, awq, awq.config)
    )
    [kernel] = attention(quantized).qkv_proj.kernels
    assert isinstance(kernel, AtenInt4Kernel)
    x = torch.randn(4, 64).bfloat16()
    ours, theirs = (torch.cat(attention(model).qkv_proj(x), 1) for model in (quantized, plain))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_weights_take_their_bits_and_little_more(tmp_path: Path) -> None:
    awq = Awq()
    quantized, plain = (load(path) for path in save_pair("llama", tmp_path, awq, awq.config))
    layers = [module for module in quantized.modules() if isinstance(module, QuantizedLinear)]
    num_weights = sum(layer.in_features * layer.out_features for layer in layers)
    # Four bits, and a scale and a zero for 32.
    assert weight_bytes(plain) - weight_bytes(quantized) >= num_weights * (4 - 5 / 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 8}, "8 bits"),
        ({"bits": None, "w_bit": 3}, "None bits"),
        ({"version": "gemv_fast"}, "'gemv_fast'"),
        ({"version": None, "format": "llm-awq"}, "'llm-awq'"),
        ({"backend": "llm-awq"}, "'llm-awq'"),
        ({"group_size": "128"}, "group_size"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        AwqMethod(Awq().config | fields)
    assert message in caught.value.message


def test_the_older_names_of_fields_are_read(tmp_path: Path) -> None:
    config = {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"}
    assert_same(*(load(path) for path in save_pair("llama", tmp_path, Awq(), config)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zero_point": False}, r"without zero points \(zero_point\).*q_proj"),
        ({}, "q_proj.qzeros is missing"),
        ({"version": "gemv", "group_size": 16}, "as gemv with groups of 16"),
        ({"group_size": 48}, "q_proj has 64 inputs and 64 outputs.* groups of 48"),
    ],
)
def test_what_is_wrong_with_a_layer_is_named(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save_pair("llama", tmp_path, Awq(), Awq().config | fields)[0]
    tensors = load_file(path / "model.safetensors")
    if "version" not in fields:
        del tensors["model.layers.0.self_attn.q_proj.qzeros"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        load(path)


@pytest.mark.parametrize("case", ["starcoder2", "gpt-bigcode"])
def test_activations_may_be_scaled(case: str, tmp_path: Path) -> None:
    awq, scales = Awq(), {}

    def pack(name: str, weight: Tensor) -> Packed | None:
        if not name.endswith("mlp.c_proj"):
            return awq(name, weight) if "lm_head" not in name else None
        own = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(1)) + 0.5
        scales[name.replace("c_proj", "act.scales")] = own
        packed = awq(name, weight * own)
        return packed._replace(weight=packed.weight / own)

    quantized, plain = save_pair(case, tmp_path, pack, awq.config)
    assert scales
    file = quantized / "model.safetensors"
    save_file(load_file(file) | scales, file)
    assert_same(load(quantized), load(plain))


def test_early_versions_have_their_config_in_a_file_of_its_own(tmp_path: Path) -> None:
    quantized, plain = save_pair("llama", tmp_path, Awq(), {})
    config = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (quantized / "quant_config.json").write_text(json.dumps(config))
    assert_same(load(quantized), load(plain))
