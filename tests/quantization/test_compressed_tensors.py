"""What llm-compressor writes: int8, int4 in words, E4M3, and several of them in one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from axion.quantization.float8 import Float8Kernel
from axion.quantization.int8 import Int8Kernel
from axion.quantization.integers import AtenInt4Kernel, IntegerKernel
from tests.quantization.pairs import Packed, assert_same, load, save_pair, weight_bytes

GROUP = 32


def config(*groups: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        **fields,
    }


def group(
    bits: int, strategy: str, kind: str = "int", targets: tuple[str, ...] = ("Linear",), **more: Any
) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True}
    weights |= {"group_size": GROUP} if strategy == "group" else {}
    inputs = more.pop("inputs", None)
    return {"targets": list(targets), "weights": weights | more, "input_activations": inputs}


def words(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes along the last dimension in words of 32 bits, the lowest first."""
    per_word = 32 // bits
    padded = torch.nn.functional.pad(codes.long(), (0, -codes.shape[-1] % per_word))
    shifts = torch.arange(0, 32, bits)
    packed = (padded.unflatten(-1, (-1, per_word)) << shifts).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def integers(
    bits: int, group_size: int, *, zeros: bool = False, order: bool = False, packed: bool = True
) -> Callable[[str, Tensor], Packed | None]:
    def pack(name: str, weight: Tensor) -> Packed | None:
        if name == "lm_head":
            return None
        num_rows, num_columns = weight.shape
        g_idx = torch.arange(num_columns) // (group_size or num_columns)
        if order:
            g_idx = g_idx[torch.randperm(num_columns, generator=torch.Generator().manual_seed(7))]
        num_groups, top = int(g_idx.max()) + 1, 2 ** (bits - 1)
        parts = [weight[:, g_idx == i] for i in range(num_groups)]
        extent = torch.stack([part.abs().amax(1) for part in parts], 1)
        scale, zero = extent / (top - 1), torch.zeros(num_rows, num_groups)
        if zeros:
            zero = torch.randint(-3, 4, zero.shape).float()
        codes = (weight / scale[:, g_idx]).round() + zero[:, g_idx]
        codes = codes.clamp(-top, top - 1)
        tensors = {"weight_scale": scale}
        if packed:
            tensors["weight_packed"] = words(codes + top, bits)
            tensors["weight_shape"] = torch.tensor(weight.shape)
        else:
            tensors["weight"] = codes.to(torch.int8)
        if zeros:
            stored = words((zero + top).T, bits).T if packed else zero.to(torch.int8)
            tensors["weight_zero_point"] = stored
        if order:
            tensors["weight_g_idx"] = g_idx.int()
        return Packed(tensors, (codes - zero[:, g_idx]) * scale[:, g_idx])

    return pack


def e4m3(name: str, weight: Tensor) -> Packed | None:
    if name == "lm_head":
        return None
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return Packed({"weight": codes, "weight_scale": scale}, codes.float() * scale)


def kernels(model: CausalLM) -> set[str]:
    layers = (Int8Kernel, Float8Kernel, AtenInt4Kernel, IntegerKernel)
    return {type(module).__name__ for module in model.modules() if isinstance(module, layers)}


@pytest.mark.parametrize(
    ("case", "pack", "scheme", "kernel"),
    [
        ("llama", integers(8, 0, packed=False), group(8, "channel"), "Int8Kernel"),
        ("mixtral", integers(8, 0, packed=False), group(8, "channel"), "Int8Kernel"),
        ("llama", integers(8, GROUP, packed=False), group(8, "group"), "IntegerKernel"),
        ("llama", integers(8, 0, packed=False, zeros=True), group(8, "channel"), "IntegerKernel"),
        ("llama", integers(8, 0), group(8, "channel"), "Int8Kernel"),
        ("llama", integers(8, GROUP), group(8, "group"), "IntegerKernel"),
        ("qwen3", integers(4, GROUP), group(4, "group"), "IntegerKernel"),
        ("llama", integers(4, 0), group(4, "channel"), "IntegerKernel"),
        ("llama", integers(4, GROUP, zeros=True), group(4, "group"), "IntegerKernel"),
        ("llama", integers(4, GROUP, order=True), group(4, "group"), "IntegerKernel"),
        ("mixtral", integers(4, GROUP), group(4, "group"), "IntegerKernel"),
        ("deepseek-v3", integers(4, 16), group(4, "group", group_size=16), "IntegerKernel"),
        ("llama", e4m3, group(8, "channel", "float"), "Float8Kernel"),
    ],
)
def test_the_answers_are_those_of_the_dequantized_model(
    case: str, pack: Any, scheme: dict[str, Any], kernel: str, tmp_path: Path
) -> None:
    quantized, plain = (load(path) for path in save_pair(case, tmp_path, pack, config(scheme)))
    assert kernels(quantized) == {kernel}
    assert_same(quantized, plain)


def test_inputs_are_rounded_where_the_config_says_so(tmp_path: Path) -> None:
    scheme = group(8, "channel", inputs={"num_bits": 8, "type": "int", "dynamic": True})
    pack = integers(8, 0, packed=False)
    quantized, plain = (load(path) for path in save_pair("llama", tmp_path, pack, config(scheme)))
    x = torch.randn(7, 64)
    layer, reference = (model.model.layers[0].self_attn for model in (quantized, plain))
    step = x.abs().amax(-1, keepdim=True) / 127
    rounded = (x / step).round() * step
    for out, exact in zip(layer.qkv_proj(x), reference.qkv_proj(x), strict=True):
        assert (out - exact).norm() <= 0.02 * exact.norm()
    if layer.qkv_proj.kernels[0].is_packed:
        torch.testing.assert_close(layer.qkv_proj(x), reference.qkv_proj(rounded))


V_PROJS = tuple(f"model.layers.{layer}.self_attn.v_proj" for layer in range(3))


def test_each_group_has_its_layers(tmp_path: Path) -> None:
    eight, four = integers(8, 0, packed=False), integers(4, GROUP)

    def pack(name: str, weight: Tensor) -> Packed | None:
        if "v_proj" in name:
            return e4m3(name, weight)
        return (four if "mlp" in name else eight)(name, weight)

    scheme = config(
        group(8, "channel"),
        group(4, "group", targets=(r"re:.*mlp\..*",)),
        group(
            8,
            "channel",
            "float",
            targets=tuple(f"model.layers.{i}.self_attn.v_proj" for i in range(3)),
        ),
    )
    quantized, plain = (load(path) for path in save_pair("llama", tmp_path, pack, scheme))
    assert kernels(quantized) == {"Int8Kernel", "Float8Kernel", "IntegerKernel"}
    assert_same(quantized, plain)


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.36), (8, 0.57)])
def test_memory_is_what_the_format_promises(bits: int, limit: float, tmp_path: Path) -> None:
    """Of that of bfloat16."""
    pack, scheme = (
        integers(bits, 0 if bits == 8 else GROUP),
        config(group(bits, "channel" if bits == 8 else "group")),
    )
    paths = save_pair("llama", tmp_path, pack, scheme)
    quantized, plain = (load(path, "bfloat16").model.layers for path in paths)
    assert weight_bytes(quantized) <= limit * weight_bytes(plain)


def test_four_bits_in_bfloat16_are_aten_s(tmp_path: Path) -> None:
    paths = save_pair("llama", tmp_path, integers(4, GROUP), config(group(4, "group")))
    quantized, plain = (load(path, "bfloat16") for path in paths)
    assert kernels(quantized) == {"AtenInt4Kernel"}
    x = torch.randn(5, 64).bfloat16()
    out, expected = (model.model.layers[0].self_attn.o_proj(x) for model in (quantized, plain))
    assert (out - expected).norm() <= 0.02 * expected.norm()


_ENDLESS = "re:" + "(.+)" * 8 + r"\8\7[!?]"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config_groups": {}}, "config_groups must be an object"),
        ({"config_groups": {"a": {}}}, "a lacks targets or weights"),
        ({"config_groups": {"a": group(6, "group", "float")}}, "type 'float' with 6 bits"),
        ({"config_groups": {"a": group(2, "group")}}, "type 'int' with 2 bits"),
        ({"config_groups": {"a": group(4, "group", group_size=0)}}, "groups of 0 inputs"),
        ({"config_groups": {"a": group(4, "tensor_group")}}, "the strategy 'tensor_group'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
        ({"sparsity_config": ["dense"]}, "sparse weights"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "a transform_config"),
        (
            {"config_groups": {n: group(4, "group", targets=(n,)) for n in ("a", "b")}},
            "no group of the quantization has model.layers.0",
        ),
        (
            {"config_groups": {n: group(4, "group", targets=(n,)) for n in ("re:(", "b")}},
            "is no pattern",
        ),
        (
            {"config_groups": {n: group(4, "group", targets=(n,)) for n in (_ENDLESS, "b")}},
            "takes too long",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    scheme = config(group(4, "group"))
    path = save_pair("llama", tmp_path, integers(4, GROUP), scheme)[0]
    file = path / "config.json"
    saved = json.loads(file.read_text())
    saved["quantization_config"] |= fields
    file.write_text(json.dumps(saved))
    with pytest.raises(ModelLoadError) as caught:
        load(path)
    assert message in caught.value.message
