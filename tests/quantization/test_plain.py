"""Plain weights on the CPU are packed, once, and everything is as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axion.engine import loader
from axion.errors import ModelLoadError
from axion.layers import onednn
from axion.layers.linear import DenseLinear, Linear
from axion.layers.moe import ExpertLinear
from axion.quantization.kernel import DenseKernel
from axion.quantization.layers import QuantizedEmbedding, QuantizedLinear, TiedHead, num_parameters
from axion.quantization.method import QuantizationMethod
from tests.parity.checkpoints import save_tiny
from tests.quantization.pairs import assert_same, load, weight_bytes

CASES = ["llama", "llama-tied", "qwen2", "gpt2", "phi", "mixtral", "deepseek-v3", "gemma2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    return {case: save_tiny(case, folder / case) for case in CASES}


@pytest.fixture
def packs_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny weights too."""
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)


@pytest.mark.parametrize("case", CASES)
def test_a_packed_model_computes_what_the_plain_one_does(
    case: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(folders[case])
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    model = load(folders[case])
    assert any(isinstance(m, DenseKernel) and m.is_packed for m in model.modules())
    for module in model.modules():
        assert not isinstance(module, Linear | ExpertLinear) or isinstance(module, DenseLinear)
    assert num_parameters(model) == num_parameters(plain)
    assert weight_bytes(model) == weight_bytes(plain)
    assert_same(model, plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_head_and_its_embedding_are_one_weight(
    dtype: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(folders["llama-tied"], dtype)
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    model = load(folders["llama-tied"], dtype)
    assert isinstance(model.lm_head, TiedHead)
    assert isinstance(model.model.embed_tokens, QuantizedEmbedding)
    ids = torch.arange(20)
    embedded = model.model.embed_tokens(ids)
    assert embedded.dtype == model.dtype == plain.dtype
    assert torch.equal(embedded, plain.model.embed_tokens(ids))
    assert weight_bytes(model) == weight_bytes(plain)


@pytest.mark.parametrize("num_embeddings", [512, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_kernel_gives_rows_and_products(
    dtype: torch.dtype, num_embeddings: int
) -> None:
    weight = torch.randn(num_embeddings, 256).to(dtype)
    kernel = DenseKernel(weight, is_embedding=True)
    ids = torch.randint(0, num_embeddings, (50,))
    assert torch.equal(kernel.embed(ids, dtype), weight[ids])
    assert torch.equal(kernel.dequantize(dtype), weight)
    x = torch.randn(3, 256).to(dtype)
    expected = x.float() @ weight.float().T
    error = (kernel(x).float() - expected).norm()
    assert error <= 4 * torch.finfo(dtype).eps * expected.norm()
    assert kernel.is_packed == (kernel.packed_rows is not None)
    assert kernel.is_packed == (onednn.rows_view(onednn.pack(weight), weight) is not None)


@pytest.mark.parametrize("is_embedding", [False, True])
def test_a_row_of_a_product_has_the_same_bits_in_any_company(is_embedding: bool) -> None:
    kernel = DenseKernel(torch.randn(320, 256).bfloat16(), is_embedding=is_embedding)
    if not kernel.max_rows:
        pytest.skip("the CPU's own kernel does not multiply here")
    x = torch.randn(600, 256).bfloat16()
    assert kernel(x[:0]).shape == (0, 320)
    few = kernel(x[:3])
    assert torch.equal(kernel(x[: kernel.max_rows])[:3], few)
    kernel.make_batch_invariant()
    assert torch.equal(kernel(x)[:3], few)


@pytest.mark.parametrize("case", ["llama", "llama-tied", "mixtral"])
def test_memory_is_counted_as_it_will_be_taken(
    case: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(folders[case])
    largest = max(parameter.nbytes for parameter in plain.parameters())
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    need = weight_bytes(load(folders[case]))
    # The last layers are there twice meanwhile.
    monkeypatch.setattr(loader, "free_memory", lambda device: need)
    with pytest.raises(ModelLoadError, match="as float32"):
        load(folders[case])
    monkeypatch.setattr(loader, "free_memory", lambda device: need + largest)
    load(folders[case])


def test_the_memory_of_experts_is_counted_twice_while_they_are_packed(packs_all: None) -> None:
    experts = ExpertLinear(3, 16, {"down_proj": 24})
    cpu = torch.device("cpu")
    assert QuantizationMethod().loading_bytes(experts, cpu, torch.float32) == 3 * 16 * 24 * 4


def test_what_a_quantized_model_leaves_plain_is_packed(
    folders: dict[str, Path], packs_all: None
) -> None:
    model = load(folders["llama-tied"], quantization="int4")
    assert isinstance(model.lm_head, TiedHead)
    assert isinstance(model.model.layers[0].mlp.down_proj, QuantizedLinear)
