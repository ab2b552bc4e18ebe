"""`QUANTIZATION` makes of a plain checkpoint a smaller model that answers almost the same."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from axion.demo.evaluate import cases, engine_generate, evaluate
from axion.engine import loader
from axion.errors import ModelLoadError
from axion.layers import onednn
from axion.layers.linear import Linear
from axion.layers.moe import Router
from axion.models.base import CausalLM
from axion.parity.harness import Harness, Run
from axion.quantization import int8
from axion.quantization.int8 import Int8Kernel
from axion.quantization.layers import (
    QuantizedExpertLinear,
    QuantizedLinear,
    TiedHead,
    num_parameters,
)
from axion.quantization.method import QuantizationMethod
from axion.quantization.registry import quantization_method
from tests.parity.checkpoints import save_tiny
from tests.quantization.pairs import CPU, PROMPTS, assert_same, dequantized, load, weight_bytes

# Of a weight, relative to all of its matrix.
ERRORS = {"int8": 0.01, "fp8": 0.03, "int4": 0.1}
CASES = ["llama", "gpt2", "mixtral", "gpt-oss", "deepseek-v3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return {case: save_tiny(case, folder / case) for case in [*CASES, "llama-tied", "qwen2-moe"]}


def first_logits(model: CausalLM) -> torch.Tensor:
    runs = [Run(prompt) for prompt in PROMPTS]
    Harness(model).generate(runs, 1)
    return torch.stack([run.logits[0] for run in runs])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ERRORS)
def test_every_weight_is_what_it_was_within_the_error(
    name: str, case: str, folders: dict[str, Path]
) -> None:
    plain = load(folders[case]).state_dict()
    model = dequantized(load(folders[case], quantization=name), load(folders[case]))
    for key, weight in model.state_dict().items():
        assert (weight - plain[key]).norm() <= ERRORS[name] * plain[key].norm(), key


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *product(("int4", "fp8"), CASES),
        # Its inputs are rounded too, after which a router may choose other experts.
        *product(("int8",), ("llama", "gpt2")),
    ],
)
def test_it_computes_with_the_weights_that_it_keeps(
    name: str, case: str, folders: dict[str, Path]
) -> None:
    model = load(folders[case], quantization=name)
    plain = dequantized(model, load(folders[case]))
    if name == "int8":
        logits, expected = first_logits(model), first_logits(plain)
        assert (logits - expected).norm() <= 0.05 * expected.norm()
    else:
        assert_same(model, plain)


@pytest.mark.parametrize("num_rows", [1, 5, 40, 300])
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_rows_is_multiplied_alike(
    name: str, num_rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    linear = Linear(96, 48)
    linear.weight.normal_()
    method: QuantizationMethod = quantization_method({}, name)
    method.prepare(linear, {})
    quantized = method.finish(linear.to(dtype), CPU, dtype)
    assert isinstance(quantized, QuantizedLinear)
    x = torch.randn(2, num_rows, 96, dtype=dtype)
    expected = x.float() @ quantized.dequantize(torch.float32).T
    error = (quantized(x).float() - expected).norm() / expected.norm()
    assert error <= (0.01 if name == "int8" or dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("in_features", [20, 24, 48])
def test_any_number_of_inputs_is_multiplied(in_features: int) -> None:
    codes = torch.randint(-127, 128, (40, in_features), dtype=torch.int8)
    kernel = Int8Kernel(codes, torch.full((40,), 0.01), rounds_input=False)
    x = torch.randn(3, in_features).bfloat16()
    expected = x.float() @ (codes.float() * 0.01).T
    torch.testing.assert_close(kernel(x).float(), expected, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("name", ERRORS)
def test_without_fast_kernels_the_weights_are_dequantized(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axion.quantization.int8._has_vnni_product", lambda: False)
    model = load(folders["llama"], quantization=name)
    assert_same(model, dequantized(model, load(folders["llama"])))


def test_what_is_no_number_stays_in_its_token(folders: dict[str, Path]) -> None:
    head = load(folders["llama"], quantization="int8").lm_head
    x = torch.randn(4, 64)
    expected = head(x)
    x[1, 3] = torch.nan
    out = head(x)
    assert out[1].isnan().all()
    torch.testing.assert_close(out[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize("case", ["llama", "mixtral", "gpt-oss"])
@pytest.mark.parametrize(("name", "dtype"), [("int8", "float32"), ("int4", "bfloat16")])
def test_memory_is_counted_as_it_will_be_taken(
    name: str, dtype: str, case: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    need = weight_bytes(load(folders[case], dtype, quantization=name))
    plain = load(folders[case], dtype)
    assert need < 0.7 * weight_bytes(plain)
    # The head is the last, and what it is made of is there beside it.
    too_little = need + plain.lm_head.weight.nbytes - 1
    monkeypatch.setattr(loader, "free_memory", lambda device: too_little)
    with pytest.raises(ModelLoadError, match=f"as {name}"):
        load(folders[case], dtype, quantization=name)
    largest = max(parameter.nbytes for parameter in plain.parameters())
    monkeypatch.setattr(loader, "free_memory", lambda device: need + largest)
    load(folders[case], dtype, quantization=name)


def test_what_is_no_linear_layer_or_a_gate_stays(folders: dict[str, Path]) -> None:
    model = load(folders["qwen2-moe"], quantization="int8")
    moe = model.model.layers[-1].mlp
    assert isinstance(moe.gate, Router)
    assert isinstance(moe.shared_expert_gate, Linear)
    assert isinstance(moe.experts.down_proj, QuantizedExpertLinear)
    assert model.dtype == torch.float32


def test_a_small_head_that_is_the_embedding_stays(folders: dict[str, Path]) -> None:
    model = load(folders["llama-tied"], quantization="int8")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.skipif(not int8.reads_packed_rows(), reason="rows of packed weights cannot be read")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_large_head_that_is_the_embedding_has_eight_bits(
    name: str, dtype: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(folders["llama-tied"], dtype)
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    model = load(folders["llama-tied"], dtype, quantization=name)
    embedding, weight = model.model.embed_tokens, plain.model.embed_tokens.weight
    ids = torch.arange(len(weight))
    assert isinstance(model.lm_head, TiedHead)
    assert torch.equal(embedding(ids), embedding.dequantize(weight.dtype))
    assert (embedding(ids) - weight).norm() <= ERRORS["int8"] * weight.norm()
    assert sum(p.numel() for p in embedding.parameters()) == weight.numel() + len(weight)
    assert num_parameters(model) == num_parameters(plain)
    need = weight_bytes(model)
    monkeypatch.setattr(loader, "free_memory", lambda device: need - 1)
    with pytest.raises(ModelLoadError, match=f"as {name}"):
        load(folders["llama-tied"], dtype, quantization=name)
    largest = max(parameter.nbytes for parameter in plain.parameters())
    monkeypatch.setattr(loader, "free_memory", lambda device: need + largest)
    load(folders["llama-tied"], dtype, quantization=name)


@pytest.mark.parametrize("case", ["llama", "llama-tied", "mixtral"])
def test_parameters_are_counted_as_learnt(case: str, folders: dict[str, Path]) -> None:
    plain = load(folders[case])
    expected = sum(parameter.numel() for parameter in plain.parameters())
    assert num_parameters(plain) == expected
    assert num_parameters(load(folders[case], quantization="int4")) == expected


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_demo_keeps_its_skills(name: str) -> None:
    """`python -m axion.demo.evaluate --quantization int8` asks fifty times as much."""
    accuracy = evaluate(engine_generate(quantization=name, device="cpu"), cases(5, per_skill=2))
    assert sum(accuracy.values()) / len(accuracy) >= 0.9, accuracy


def test_a_model_without_layers_to_quantize_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="QUANTIZATION=int4 finds no layer"):
        quantization_method({}, "int4").prepare(torch.nn.Linear(64, 64), {})


def test_what_is_quantized_already_is_not_again(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"QUANTIZATION=int8 .*quantized already \(gptq\)"):
        load(path, quantization="int8")


def test_loading_holds_the_quantized_model_and_one_layer(tmp_path: Path) -> None:
    # A process of its own, so that what other tests left behind does not count.
    done = subprocess.run(
        [sys.executable, "-c", _PEAK_MEMORY, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, kept, plain = map(int, done.stdout.split())
    assert kept < 0.3 * plain
    assert peak < kept + 0.45 * plain


_PEAK_MEMORY = """
import json, pathlib, sys
import torch
from safetensors.torch import save_file
from axion.engine.expected_tensors import expected_tensors
from axion.engine.loader import load_model
from axion.models.config import DecoderConfig
from axion.models.llama import LlamaForCausalLM

def anonymous():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

path = pathlib.Path(sys.argv[1])
config = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 512,
    "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
}
(path / "config.json").write_text(json.dumps(config))
with torch.device("meta"):
    model = LlamaForCausalLM(DecoderConfig.from_dict(config))
tensors = {name: torch.ones(shape) for name, shape in expected_tensors(model).items()}
plain = sum(tensor.nbytes for tensor in tensors.values())
save_file(tensors, path / "model.safetensors")
del tensors
start, peak = anonymous(), 0
def watch(done, total):
    global peak
    peak = max(peak, anonymous() - start)
model = load_model(
    path, device=torch.device("cpu"), dtype="float32", quantization="int8", on_progress=watch
)
print(peak, sum(p.numel() * p.element_size() for p in model.parameters()), plain)
"""
