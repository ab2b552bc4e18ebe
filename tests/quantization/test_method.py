"""A format says how one weight is stored; everything else about a model follows from that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.engine import loader
from axion.errors import ModelLoadError
from axion.layers.linear import Linear
from axion.models.base import CausalLM
from axion.quantization.format import WeightFormat
from axion.quantization.kernel import Kernel
from axion.quantization.layers import QuantizedExpertLinear, QuantizedLinear
from axion.quantization.method import QuantizationMethod, StoredQuantized
from axion.quantization.stored import Expected, StoredTensor
from tests.quantization.pairs import CPU, Packed, assert_same, load, save_pair, weight_bytes


class RowKernel(Kernel):
    def __init__(self, values: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(values.clone(), requires_grad=False)
        self.scale = torch.nn.Parameter(scale.clone(), requires_grad=False)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.values.to(dtype) * self.scale[:, None].to(dtype)


@dataclass(frozen=True)
class RowFormat(WeightFormat):
    """One byte a weight, one scale a row."""

    dtype: str

    def expected(self, in_features: int, out_features: int) -> dict[str, Expected]:
        return {
            "values": Expected((out_features, in_features), (self.dtype,)),
            "scale": Expected((out_features,), ("F32",)),
        }

    def kernel(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> Kernel:
        return RowKernel(tensors["values"], tensors["scale"])


class RowMethod(StoredQuantized):
    quant_methods = ("rows",)

    def format(
        self, name: str, tensors: Mapping[str, StoredTensor], in_features: int, out_features: int
    ) -> WeightFormat | None:
        values = tensors.get("values")
        return None if values is None else RowFormat(values.dtype)


CONFIG = {"quant_method": "rows"}


def pack(name: str, weight: Tensor) -> Packed:
    # That of v is another number format than those of q and k.
    dtype = torch.float8_e4m3fn if "v_proj" in name else torch.int8
    scale = weight.abs().amax(1) / 100
    values = weight / scale[:, None]
    values = values.to(dtype) if dtype.is_floating_point else values.round().to(dtype)
    return Packed({"values": values, "scale": scale}, values.float() * scale[:, None])


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def method(config: dict[str, object], on_load: str) -> QuantizationMethod:
        is_quantized = "quantization_config" in config
        return RowMethod(CONFIG) if is_quantized else QuantizationMethod()

    monkeypatch.setattr(loader, "quantization_method", method)


def layer(model: CausalLM) -> torch.nn.Module:
    return model.model.layers[-1]


@pytest.mark.parametrize("case", ["llama-attention-bias", "phi3", "mixtral", "deepseek-v3"])
def test_a_quantized_model_is_the_one_that_its_weights_stand_for(case: str, tmp_path: Path) -> None:
    quantized, plain = (load(path) for path in save_pair(case, tmp_path, pack, CONFIG))
    assert any(isinstance(module, QuantizedLinear) for module in quantized.modules())
    assert_same(quantized, plain)


def test_projections_of_one_format_are_one_kernel(tmp_path: Path) -> None:
    model = load(save_pair("llama", tmp_path, pack, CONFIG)[0])
    kernels = layer(model).self_attn.qkv_proj.kernels
    assert [len(kernel.values) for kernel in kernels] == [64 + 32, 32]
    assert [len(kernel.values) for kernel in layer(model).mlp.gate_up_proj.kernels] == [192]


def test_each_expert_is_a_layer_of_its_own(tmp_path: Path) -> None:
    model = load(save_pair("mixtral", tmp_path, pack, CONFIG)[0])
    experts = layer(model).mlp.experts
    assert isinstance(experts.gate_up_proj, QuantizedExpertLinear)
    assert len(experts.gate_up_proj.experts) == len(experts.down_proj.experts) == 4


def test_a_weight_that_the_model_reads_itself_is_dequantized_once(tmp_path: Path) -> None:
    model = load(save_pair("deepseek-v3", tmp_path, pack, CONFIG)[0])
    assert isinstance(layer(model).self_attn.kv_b_proj, Linear)


def test_layers_that_are_stored_plain_stay_plain(tmp_path: Path) -> None:
    def but_some(name: str, weight: Tensor) -> Packed | None:
        return None if name == "lm_head" or "k_proj" in name else pack(name, weight)

    quantized, plain = (load(path) for path in save_pair("llama", tmp_path, but_some, CONFIG))
    assert isinstance(quantized.lm_head, Linear)
    assert_same(quantized, plain)


def test_memory_is_counted_as_it_will_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized, plain = save_pair("mixtral", tmp_path, pack, CONFIG)
    need = weight_bytes(load(quantized))
    assert need < 0.5 * weight_bytes(load(plain))
    calls: list[tuple[int, int]] = []
    loader.load_model(
        quantized, device=CPU, dtype="float32", on_progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == (need, need)
    # Beside the model there is one layer while it is loaded.
    monkeypatch.setattr(loader, "free_memory", lambda device: 2 * need)
    load(quantized)
    monkeypatch.setattr(loader, "free_memory", lambda device: need - 1)
    with pytest.raises(ModelLoadError, match="as rows"):
        load(quantized)


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (f"{Q_PROJ}.scale", None, f"{Q_PROJ}.scale is missing"),
        (f"{Q_PROJ}.scale", torch.ones(3), f"{Q_PROJ}.scale has shape [3], expected [64]"),
        (f"{Q_PROJ}.scale", torch.ones(64).int(), f"{Q_PROJ}.scale is stored as I32, expected F32"),
        (f"{Q_PROJ}.zero", torch.ones(64), f"'{Q_PROJ}.zero' [64] is not part of"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_named(
    name: str, tensor: Tensor | None, message: str, tmp_path: Path
) -> None:
    path = save_pair("llama", tmp_path, pack, CONFIG)[0]
    tensors = load_file(path / "model.safetensors")
    tensors.pop(name, None)
    tensors |= {} if tensor is None else {name: tensor}
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelLoadError) as caught:
        load(path)
    assert message in caught.value.message


def test_experts_that_are_stored_as_one_tensor_are_taken_apart(tmp_path: Path) -> None:
    path, plain = save_pair("mixtral", tmp_path, pack, CONFIG)
    tensors = load_file(path / "model.safetensors")
    for name in [name for name in tensors if ".experts.0.w2." in name]:
        experts = [tensors.pop(name.replace("experts.0", f"experts.{i}")) for i in range(4)]
        stacked = name.replace("experts.0.w2.values", "experts.down_proj_values")
        stacked = stacked.replace("experts.0.w2.scale", "experts.down_proj_scale")
        tensors[stacked] = torch.stack(experts)
    save_file(tensors, path / "model.safetensors")
    assert_same(load(path), load(plain))


@pytest.mark.parametrize("field", ["quantization_config", "compression_config"])
def test_a_method_that_nobody_has_is_refused_by_name(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    path = save_pair("llama", tmp_path, pack, CONFIG)[1]
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {field: {"quant_method": "abacus"}}))
    with pytest.raises(ModelLoadError, match=r"\(abacus\), which is not supported\. Supported: "):
        load(path)
    (path / "config.json").write_text(json.dumps(config | {field: "abacus"}))
    with pytest.raises(ModelLoadError, match=f"{field} must be an object"):
        load(path)
