"""GPTQ checkpoints, packed here as AutoGPTQ and GPTQModel pack them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.errors import ModelLoadError
from axion.quantization.gptq import GptqFormat, GptqMethod
from axion.quantization.integers import AtenInt4Kernel
from axion.quantization.layers import QuantizedLinear
from tests.quantization.pairs import Packed, assert_same, load, save_pair, weight_bytes


def pack_words(codes: np.ndarray, bits: int) -> Tensor:
    """`[n, columns]` to int32 `[n * bits / 32, columns]`, through numbers as long as a column."""
    columns = []
    for column in codes.T:
        number = sum(int(code) << bits * place for place, code in enumerate(column))
        columns.append(np.frombuffer(number.to_bytes(len(column) * bits // 8, "little"), "<i4"))
    return torch.from_numpy(np.stack(columns, 1))


@dataclass(frozen=True)
class Gptq:
    """How a test packs."""

    bits: int = 4
    group_size: int = 32
    sym: bool = True
    desc_act: bool = False
    checkpoint_format: str = "gptq"
    has_groups: bool = True

    def __call__(self, name: str, weight: Tensor) -> Packed | None:
        out_features, in_features = weight.shape
        if out_features % 32:
            return None
        size = in_features if self.group_size == -1 else self.group_size
        groups = np.arange(in_features) // size
        if self.desc_act:
            groups = np.random.default_rng(out_features).permutation(groups)
        weights, top = weight.numpy(), 2**self.bits - 1
        scales = np.zeros((groups.max() + 1, out_features), np.float16)
        zeros = np.full(scales.shape, (top + 1) // 2)
        for group, columns in enumerate(weights.T[groups == i] for i in range(len(scales))):
            low, high = columns.min(0), columns.max(0)
            if self.sym:
                scales[group] = 2 * np.maximum(-low, high) / top
            else:
                low, high = np.minimum(low, 0), np.maximum(high, 0)
                # In one column nothing is below zero.
                low[0] = 0
                scales[group] = (high - low) / top
                zeros[group] = np.round(-low / scales[group].astype(np.float32))
        scale, zero = scales[groups].astype(np.float32), zeros[groups]
        codes = np.clip(np.round(weights.T / scale) + zero, 0, top).astype(np.int64)
        tensors = {
            "qweight": pack_words(codes, self.bits),
            "qzeros": self._pack_zeros(zeros),
            "scales": torch.from_numpy(scales),
        }
        if self.has_groups:
            tensors["g_idx"] = torch.from_numpy(groups.astype(np.int32))
        return Packed(tensors, torch.from_numpy(((codes - zero) * scale).T.astype(np.float32)))

    def _pack_zeros(self, zeros: np.ndarray) -> Tensor:
        if self.checkpoint_format == "gptq_v2":
            return pack_words(zeros.T, self.bits).T
        if self.bits == 3:
            return pack_words((zeros - 1 & 7).T, self.bits).T
        # GPTQModel takes the ones away from whole words.
        ones = int("1".rjust(self.bits, "0") * (32 // self.bits), 2)
        return (pack_words(zeros.T, self.bits) - ones).T

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.sym,
            "desc_act": self.desc_act,
            "checkpoint_format": self.checkpoint_format,
        }


def attention(model: torch.nn.Module) -> Any:
    return model.model.layers[-1].self_attn


@pytest.mark.parametrize(
    "gptq",
    [
        Gptq(),
        Gptq(has_groups=False),
        Gptq(sym=False),
        Gptq(desc_act=True),
        Gptq(group_size=-1),
        Gptq(group_size=-1, desc_act=True, has_groups=False),
        Gptq(group_size=64, sym=False),
        Gptq(checkpoint_format="gptq_v2", sym=False),
        Gptq(bits=2, group_size=16, sym=False),
        Gptq(bits=3, sym=False),
        Gptq(bits=3, checkpoint_format="gptq_v2", desc_act=True),
        Gptq(bits=8, sym=False),
    ],
    ids=str,
)
def test_each_way_to_pack_is_read_as_it_was_meant(gptq: Gptq, tmp_path: Path) -> None:
    quantized, plain = (load(path) for path in save_pair("llama", tmp_path, gptq, gptq.config))
    assert isinstance(attention(quantized).o_proj, QuantizedLinear)
    for name, layer in quantized.named_modules():
        if isinstance(layer, QuantizedLinear):
            expected = plain.get_submodule(name).weight
            assert torch.equal(layer.dequantize(torch.float32), expected), name
    assert_same(quantized, plain)


@pytest.mark.parametrize(
    "case", ["llama-attention-bias", "qwen3", "mixtral", "phi3", "deepseek-v3"]
)
def test_other_architectures_are_quantized_too(case: str, tmp_path: Path) -> None:
    gptq = Gptq(sym=False)
    assert_same(*(load(path) for path in save_pair(case, tmp_path, gptq, gptq.config)))


def test_a_bias_of_zeros_for_a_layer_without_one_is_left_out(tmp_path: Path) -> None:
    gptq = Gptq()
    path, plain = save_pair("llama", tmp_path, gptq, gptq.config)
    tensors = load_file(path / "model.safetensors")
    layers = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    tensors |= {f"{layer}.bias": torch.zeros(64) for layer in layers}
    save_file(tensors, path / "model.safetensors")
    assert_same(load(path), load(plain))
    save_file(tensors | {f"{layers[0]}.bias": torch.ones(64)}, path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"{layers[0]}.bias"):
        load(path)


@pytest.mark.parametrize("desc_act", [False, True])
def test_in_bfloat16_aten_multiplies(desc_act: bool, tmp_path: Path) -> None:
    gptq = Gptq(sym=False, desc_act=desc_act)
    paths = save_pair("llama", tmp_path, gptq, gptq.config)
    quantized, plain = (load(path, "bfloat16") for path in paths)
    kernels = attention(quantized).qkv_proj.kernels
    assert all(isinstance(kernel, AtenInt4Kernel) for kernel in kernels)
    x = torch.randn(4, 64).bfloat16()
    pairs = zip(attention(quantized).qkv_proj(x), attention(plain).qkv_proj(x), strict=True)
    assert all((ours - theirs).norm() < 0.01 * theirs.norm() for ours, theirs in pairs)


def test_projections_are_joined_if_their_inputs_have_one_order(tmp_path: Path) -> None:
    for desc_act, expected in ((False, [128]), (True, [64, 32, 32])):
        gptq = Gptq(desc_act=desc_act)
        model = load(save_pair("llama", tmp_path / str(desc_act), gptq, gptq.config)[0])
        assert [kernel.out_features for kernel in attention(model).qkv_proj.kernels] == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_take_their_bits_and_little_more(dtype: str, tmp_path: Path) -> None:
    gptq = Gptq()
    quantized, plain = save_pair("llama", tmp_path, gptq, gptq.config)
    model, itemsize = load(quantized, dtype), 4 if dtype == "float32" else 2
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    num_weights = sum(layer.in_features * layer.out_features for layer in layers)
    saved = weight_bytes(load(plain, dtype)) - weight_bytes(model)
    assert saved >= num_weights * (itemsize - 5 / 8)


def change_config(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= fields
    file.write_text(json.dumps(config))


def test_the_offset_of_zeros_is_that_of_the_version(tmp_path: Path) -> None:
    path, plain = save_pair("llama", tmp_path, gptq := Gptq(), gptq.config)
    expected = attention(load(plain)).o_proj.weight
    for version, is_right in (("gptq", True), ("gptq_v2", False)):
        change_config(path, checkpoint_format=version)
        ours = attention(load(path)).o_proj.dequantize(torch.float32)
        assert torch.equal(ours, expected) == is_right


def test_a_group_is_no_larger_than_a_row(tmp_path: Path) -> None:
    gptq = Gptq(group_size=-1)
    path, plain = save_pair("llama", tmp_path, gptq, gptq.config)
    change_config(path, group_size=10**30)
    assert_same(load(path), load(plain))


def test_layers_may_have_their_own_bits(tmp_path: Path) -> None:
    wide, narrow = Gptq(bits=8, group_size=-1), Gptq()

    def pack(name: str, weight: Tensor) -> Packed | None:
        if "v_proj" in name:
            return None
        return (wide if "k_proj" in name else narrow)(name, weight)

    dynamic = {
        r"-:.*v_proj": {},
        r"+:.*\.k_proj": {"bits": 8, "group_size": -1},
        r".*": {"bits": 4},
    }
    config = narrow.config | {"dynamic": dynamic}
    quantized, plain = (load(path) for path in save_pair("llama", tmp_path, pack, config))
    assert len(attention(quantized).qkv_proj.kernels) == 3
    assert_same(quantized, plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 5}, "bits 5"),
        ({"bits": 4.0}, "bits 4.0"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": None}, "group_size"),
        ({"checkpoint_format": "marlin"}, "'marlin'"),
        ({"is_marlin_format": True}, "'marlin'"),
        ({"checkpoint_format": None, "format": "bitblas"}, "'bitblas'"),
        ({"pack_dtype": "int64"}, "pack_dtype 'int64'"),
        ({"adapter": {"rank": 8}}, "adapter"),
        ({"dynamic": {"+:.*": {"bits": 6}}}, "bits 6"),
        ({"dynamic": {"(": {}}}, "is no pattern"),
        ({"dynamic": {".*": 4}}, "dynamic must map patterns"),
        ({"dynamic": [1]}, "dynamic must map patterns"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        GptqMethod(Gptq().config | fields)
    assert message in caught.value.message


O_PROJ = "model.layers.0.self_attn.o_proj"
Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("gptq", "change", "message"),
    [
        (
            Gptq(),
            lambda t: t.update({f"{O_PROJ}.g_idx": t[f"{O_PROJ}.g_idx"] + 1}),
            f"{O_PROJ}.g_idx must hold groups from 0 to 1, got 1 to 2",
        ),
        (
            Gptq(desc_act=True),
            lambda t: t.pop(f"{O_PROJ}.g_idx"),
            f"{O_PROJ}.g_idx is missing",
        ),
        (Gptq(), lambda t: t.pop(f"{O_PROJ}.qzeros"), f"{O_PROJ}.qzeros is missing"),
        (
            Gptq(),
            lambda t: t.update({"lm_head.qweight": t.pop("lm_head.weight").int()}),
            "lm_head has 199 inputs or outputs, which cannot be packed with 4 bits",
        ),
    ],
)
def test_what_is_wrong_with_a_layer_is_named(
    gptq: Gptq, change: Change, message: str, tmp_path: Path
) -> None:
    path = save_pair("llama", tmp_path, gptq, gptq.config)[0]
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelLoadError) as caught:
        load(path)
    assert message in caught.value.message


@pytest.mark.parametrize(("bits", "in_features"), [(2, 16), (4, 8), (8, 4)])
def test_a_layer_whose_inputs_fill_one_word_is_served(bits: int, in_features: int) -> None:
    weight = torch.randn(32, in_features, generator=torch.Generator().manual_seed(0))
    packed = Gptq(bits=bits, group_size=-1)("layer", weight)
    assert packed is not None
    stored = GptqFormat(
        bits=bits,
        group_size=in_features,
        scales="F16",
        is_ordered=True,
        is_offset=True,
        has_groups=True,
    )
    tensors = stored.unpack(packed.tensors, in_features, 32)
    kernel = stored.kernel(tensors, torch.float32)
    torch.testing.assert_close(kernel(torch.eye(in_features)).T, packed.weight)


def test_early_versions_have_their_config_in_a_file_of_its_own(tmp_path: Path) -> None:
    gptq = Gptq()
    path, plain = save_pair("llama", tmp_path, gptq, {})
    config = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    (path / "quantize_config.json").write_text(json.dumps(config))
    assert_same(load(path), load(plain))
