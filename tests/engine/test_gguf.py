"""GGUF files of every architecture, and of every type, as models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from axion.engine.eos_tokens import eos_token_ids
from axion.engine.loader import load_model
from axion.errors import ModelLoadError
from axion.layers import cpu_kernels
from axion.models.base import CausalLM
from axion.parity.harness import CPU, Harness, Run
from axion.quantization.gguf import BlockKernel
from axion.quantization.gguf_blocks import dequantize
from axion.quantization.gguf_packed import PackedBlockKernel
from tests.gguf_files import CASES, METADATA, build, tensors, write_gguf, write_tiny_gguf
from tests.parity.checkpoints import build_tiny

PROMPT = [(31 * i * i + 7 * i) % 199 for i in range(80)]
TOLERANCE = 1e-4
LLAMA = json.loads(METADATA.read_text())["llama"]


def load(path: Path, dtype: str = "float32") -> CausalLM:
    return load_model(path, device=CPU, dtype=dtype)


def logits(model: CausalLM) -> Tensor:
    """Of the token after the prompt, and of the one after that."""
    run = Run(PROMPT)
    Harness(model).generate([run], 2)
    return torch.stack(run.logits)


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_is_the_model(case: str, tmp_path: Path):
    reference = build(case)
    found = logits(load(write_tiny_gguf(case, reference, tmp_path / "model.gguf")))
    with torch.inference_mode():
        prompt = torch.tensor([[*PROMPT, int(found[0].argmax())]])
        expected = reference(prompt[:, :-1]).logits[0, -1]
    assert (found[0] - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("llama-bias", Type.Q4_0),
        ("qwen3-tied", Type.Q8_0),
        ("llama-head-dim", Type.Q5_1),
        ("mixtral", Type.Q8_0),
        ("gpt-oss", Type.Q5_0),
        ("gpt2", Type.Q4_1),
        ("gpt-neox", Type.Q4_0),
        ("falcon-new", Type.Q8_0),
        ("deepseek-v2", Type.Q8_0),
        ("glm4", Type.BF16),
        ("gemma3", Type.F16),
        ("gemma4-experts", Type.Q8_0),
        ("qwen3-next", Type.Q8_0),
        ("gemma3n", Type.Q8_0),
        ("llama4", Type.Q8_0),
        ("granite-hybrid-dense", Type.Q8_0),
    ],
)
def test_a_quantized_model_is_that_of_its_dequantized_weights(
    case: str, kind: Type, tmp_path: Path
):
    model = build(case)
    quantized = write_tiny_gguf(case, model, tmp_path / "quantized.gguf", kind)
    stored = {
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(quantized).tensors
    }
    metadata = json.loads(METADATA.read_text())[case]
    plain = write_gguf(tmp_path / "plain.gguf", metadata, stored)
    found, expected = load(quantized), load(plain)
    assert (logits(found) - logits(expected)).abs().max() <= TOLERANCE
    if kind not in (Type.F16, Type.BF16):
        assert num_bytes(found) < num_bytes(expected)


def test_experts_in_two_types_that_become_one_are_dequantized_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = build("gpt-oss")
    metadata = json.loads(METADATA.read_text())["gpt-oss"]
    stored = dict(tensors(metadata, model))
    kinds = {"gate_exps.weight": Type.Q8_0, "up_exps.weight": Type.Q5_0}
    path = write_gguf(
        tmp_path / "m.gguf",
        metadata,
        stored,
        lambda name: next((kinds[part] for part in kinds if name.endswith(part)), Type.F32),
    )
    sizes: list[int] = []

    def count(*args: Any) -> Tensor:
        numbers = dequantize(*args)
        sizes.append(numbers.numel())
        return numbers

    monkeypatch.setattr("axion.engine.gguf.dequantize", count)
    load(path)
    both = [tensor for name, tensor in stored.items() if name.endswith(tuple(kinds))]
    assert both
    assert sum(sizes) <= sum(tensor.numel() for tensor in stored.values())
    assert max(sizes) < min(tensor.numel() for tensor in both)


def num_bytes(model: CausalLM) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


# Of each block, where its float16 scales are.
SCALES = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ4_XS: (0,),
    Type.IQ4_NL: (0,),
    Type.Q4_0: (0,),
    Type.NVFP4: (),
}


def random_blocks(shape: tuple[int, ...], kind: Type, seed: int) -> np.ndarray:
    block_size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(
        0, 256, size=(*shape[:-1], shape[-1] // block_size, num_bytes), dtype=np.uint8
    )
    for at in SCALES[kind]:
        blocks[..., at : at + 2] = np.frombuffer(np.float16(0.0004).tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A llama with rows long enough for the K types, each in places; and its plain version."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    model = build_tiny("llama", **sizes, tie_word_embeddings=True)
    kinds = {
        "attn_q": Type.Q4_K,
        "attn_k": Type.Q4_K,
        "attn_v": Type.Q6_K,
        "attn_output": Type.Q3_K,
        "ffn_gate": Type.Q2_K,
        "ffn_up": Type.IQ4_XS,
        "ffn_down": Type.Q5_K,
        "token_embd": Type.Q6_K,
    }
    metadata = LLAMA | {
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 256,
        "llama.rope.dimension_count": 64,
    }
    for key in ("key_length", "value_length"):
        metadata.pop(f"llama.attention.{key}", None)
    folder = tmp_path_factory.mktemp("gguf")
    writers = [gguf.GGUFWriter(folder / f"{name}.gguf", "llama") for name in ("mixed", "plain")]
    for seed, (name, tensor) in enumerate(tensors(LLAMA, model)):
        kind = next((kind for part, kind in kinds.items() if part in name), None)
        if kind is None:
            data = [tensor.detach().numpy()] * 2
        else:
            blocks = random_blocks(tuple(tensor.shape), kind, seed)
            data = [blocks, gguf.quants.dequantize(blocks, kind)]
        for writer, values, raw in zip(writers, data, (kind, None), strict=True):
            writer.add_tensor(name, values, raw_dtype=raw)
    for writer in writers:
        for key, value in metadata.items():
            if key != "general.architecture":
                add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
                add(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / "mixed.gguf", folder / "plain.gguf"


def test_types_may_differ_from_tensor_to_tensor(mixed: tuple[Path, Path]):
    found, expected = (load(path) for path in mixed)
    assert (logits(found) - logits(expected)).abs().max() <= TOLERANCE
    kinds = [k.kind.name for k in found.modules() if isinstance(k, BlockKernel)]
    assert kinds[:6] == ["Q6_K", "Q4_K", "Q6_K", "Q3_K", "Q2_K", "IQ4_XS"]  # q and k are one


def test_weights_take_the_memory_that_they_have_in_the_file(mixed: tuple[Path, Path]):
    model = load(mixed[0])
    stored = sum(tensor.n_bytes for tensor in gguf.GGUFReader(mixed[0]).tensors)
    assert num_bytes(model) == stored


@pytest.mark.skipif(not cpu_kernels.work(), reason="kernels do not work on this machine")
def test_in_bfloat16_weights_are_multiplied_by_the_cpu_s_kernels(
    mixed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    from axion.layers.cpu_kernels import blocks

    # Kernels for all numbers of rows are too many to compile.
    monkeypatch.setattr(blocks, "_kernels", lambda name: {8: blocks._multiply(name, 8)})
    monkeypatch.setattr(blocks, "_TILES", (8,))
    counted: list[int] = []
    found = load_model(
        mixed[0], device=CPU, dtype="bfloat16", on_progress=lambda _, total: counted.append(total)
    )
    assert counted[-1] == num_bytes(found)
    kinds = [k.kind.name for k in found.modules() if isinstance(k, PackedBlockKernel)]
    assert kinds[:6] == ["Q4_K", "Q6_K", "Q3_K", "Q2_K", "IQ4_XS", "Q5_K"]
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    q, _, v = found.model.layers[0].self_attn.qkv_proj(x)
    exact_q, _, exact_v = load(mixed[1]).model.layers[0].self_attn.qkv_proj(x.float())
    for out, exact in ((q, exact_q), (v, exact_v)):
        assert (out.float() - exact).norm() <= 0.009 * exact.norm()


def test_a_split_file_is_one_model(tmp_path: Path):
    model = build("llama")
    all_tensors = dict(tensors(LLAMA, model))
    names = sorted(all_tensors)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    for number, part in enumerate(parts):
        metadata: dict[str, Any] = LLAMA if number == 0 else {"general.architecture": "llama"}
        path = tmp_path / f"m-{number + 1:05}-of-00002.gguf"
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
        write_gguf(path, metadata | split, {name: all_tensors[name] for name in part})
    whole = load(write_tiny_gguf("llama", model, tmp_path / "whole.gguf"))
    found = load(tmp_path / "m-00001-of-00002.gguf")
    assert torch.equal(logits(found), logits(whole))
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelLoadError, match="1 of the model's 2 GGUF files are missing"):
        load(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("metadata", "changes", "said"),
    [
        ({"general.architecture": "mamba"}, {}, "architecture 'mamba' are not supported"),
        ({"llama.embedding_length": 0}, {}, r"llama\.embedding_length must be a positive integer"),
        ({"llama.block_count": 3}, {}, r"no tensor blk\.2\.\w+\.weight"),
        ({"llama.block_count": 1}, {}, r"not part of its architecture: 'blk\.1\."),
        ({"llama.attention.head_count": 3}, {}, "multiple of num_key_value_heads"),
        ({"llama.some_new_thing": 3}, {}, "llama.some_new_thing=3, which changes what"),
        ({"llama.attention.causal": False}, {}, "encoder"),
        ({"llama.rope.scaling.type": "spiral"}, {}, "rope type 'spiral'"),
        ({}, {"blk.0.ffn_up.weight": None}, r"no tensor blk\.0\.ffn_up\.weight"),
        ({}, {"blk.0.ffn_up.weight": torch.zeros(5, 64)}, r"has shape \[5, 64\], expected \[96"),
        ({}, {"blk.0.extra.weight": torch.zeros(5)}, r"architecture: 'blk\.0\.extra\.weight'"),
        ({}, {"token_embd.weight": None}, r"no tensor token_embd\.weight"),
        ({}, {"blk.1.attn_q.weight": torch.zeros(7, 64)}, r"fit its metadata: blk\.1\.attn_q"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_computed_is_refused_by_name(
    metadata: dict[str, Any], changes: dict[str, Tensor | None], said: str, tmp_path: Path
):
    stored = dict(tensors(LLAMA, build("llama"))) | changes
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    path = write_gguf(tmp_path / "m.gguf", LLAMA | metadata, stored)
    with pytest.raises(ModelLoadError, match=said) as caught:
        load(path)
    assert "config.json" not in caught.value.message or "has shape" in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("case", "name", "shape"),
    [
        ("mixtral", "blk.0.ffn_up_exps.weight", (3, 96, 64)),
        ("deepseek-v2", "blk.1.attn_k_b.weight", (4, 3, 5)),
        ("gpt-oss", "blk.0.ffn_gate_exps.weight", (6, 5, 64)),
        ("gpt-neox", "blk.0.attn_qkv.weight", (11, 64)),
        ("falcon", "blk.0.attn_qkv.weight", (11, 64)),
        ("gpt2", "blk.0.attn_output.weight", (64,)),
    ],
)
def test_wrong_shapes_are_refused_before_anything_is_read(
    case: str, name: str, shape: tuple[int, ...], tmp_path: Path
):
    metadata = json.loads(METADATA.read_text())[case]
    stored = dict(tensors(metadata, build(case))) | {name: torch.zeros(shape)}
    with pytest.raises(ModelLoadError, match=r"fit its metadata|has shape"):
        load(write_gguf(tmp_path / "m.gguf", metadata, stored))


def test_a_weight_in_nvfp4_may_have_a_scale_beside_it(tmp_path: Path):
    """Each expert one of its own."""
    metadata = json.loads(METADATA.read_text())["mixtral"] | {"llama.feed_forward_length": 64}
    model = build_tiny("mixtral", intermediate_size=64)
    stored = dict(tensors(metadata, model))
    rows = dict(stored)
    for seed, name in enumerate(n for n in stored if re.search(r"(attn_[qv]|exps)\.weight", n)):
        blocks = random_blocks(tuple(stored[name].shape), Type.NVFP4, seed)
        blocks.reshape(-1, 36)[:, :4] = 8 + blocks.reshape(-1, 36)[:, :4] % 8
        num_scales = len(stored[name]) if "exps" in name else 1
        scales = torch.rand(num_scales, generator=torch.Generator().manual_seed(seed)) + 0.5
        rows[name] = torch.from_numpy(blocks)
        stem = name.removesuffix("weight")
        rows |= {f"{stem}scale": scales, f"{stem}input_scale": torch.ones(num_scales)}
        numbers = torch.from_numpy(gguf.quants.dequantize(blocks, Type.NVFP4))
        stored[name] = numbers * scales.view(-1, *[1] * (numbers.dim() - 1))
    plain = write_gguf(tmp_path / "plain.gguf", metadata, stored)

    def kind(name: str) -> Type:
        return Type.NVFP4 if rows[name].dtype == torch.uint8 else Type.F32

    path = write_gguf(tmp_path / "nvfp4.gguf", metadata, rows, kind)
    found, expected = load(path), load(plain)
    kinds = {k.kind.name for k in found.modules() if isinstance(k, BlockKernel)}
    assert kinds == {"NVFP4"}
    assert (logits(found) - logits(expected)).abs().max() <= TOLERANCE
    rows["blk.1.ffn_up_exps.scale"] = torch.ones(2)
    with pytest.raises(ModelLoadError, match=r"ffn_up_exps.scale is \[2\] in F32, expected \[4\]"):
        load(write_gguf(tmp_path / "damaged.gguf", metadata, rows, kind))


def test_factors_of_experts_in_nvfp4_are_in_their_scales(tmp_path: Path):
    """The converter of Gemma 4 multiplies the two."""
    metadata = json.loads(METADATA.read_text())["gemma4-experts"]
    metadata["gemma4.expert_feed_forward_length"] = 64
    row, changes = CASES["gemma4-experts"]
    stored = dict(tensors(metadata, build_tiny(row, **changes, moe_intermediate_size=64)))
    rows = dict(stored)
    for seed, name in enumerate(n for n in stored if n.endswith("down_exps.weight")):
        blocks = random_blocks(tuple(stored[name].shape), Type.NVFP4, seed)
        blocks.reshape(-1, 36)[:, :4] = 8 + blocks.reshape(-1, 36)[:, :4] % 8
        scale = f"{name.removesuffix('weight')}scale"
        numbers = torch.from_numpy(gguf.quants.dequantize(blocks, Type.NVFP4))
        rows |= {name: torch.from_numpy(blocks), scale: torch.rand(len(blocks)) + 0.5}
        stored |= {name: numbers, scale: rows[scale]}
    path = write_gguf(
        tmp_path / "nvfp4.gguf",
        metadata,
        rows,
        lambda name: Type.NVFP4 if rows[name].dtype == torch.uint8 else Type.F32,
    )
    expected = load(write_gguf(tmp_path / "plain.gguf", metadata, stored))
    assert (logits(load(path)) - logits(expected)).abs().max() <= TOLERANCE


def test_the_first_files_of_qwen3_next_keep_what_belongs_to_a_key_head_together(tmp_path: Path):
    reference = build("qwen3-next")
    metadata = json.loads(METADATA.read_text())["qwen3-next"]
    stored = dict(tensors(metadata, reference))
    path = write_gguf(tmp_path / "new.gguf", metadata, stored)
    del stored["blk.0.attn_qkv.weight"], stored["blk.0.attn_gate.weight"]
    in_proj = reference.model.layers[0].linear_attn.in_proj_qkvz
    stored["blk.0.ssm_in.weight"] = in_proj.weight
    old = write_gguf(tmp_path / "old.gguf", metadata, stored)
    assert torch.equal(logits(load(old)), logits(load(path)))


def test_a_layer_that_guesses_further_tokens_is_left_out(tmp_path: Path):
    metadata = json.loads(METADATA.read_text())["qwen3-5"]
    stored = dict(tensors(metadata, build("qwen3-5")))
    path = write_gguf(tmp_path / "without.gguf", metadata, stored)
    metadata |= {
        **{"qwen35.block_count": 3, "qwen35.nextn_predict_layers": 1},
        "qwen35.attention.recurrent_layers": [True, False, False],
    }
    stored |= {"blk.2.attn_norm.weight": torch.ones(64), "blk.2.nextn.enorm.weight": torch.ones(64)}
    guessing = write_gguf(tmp_path / "with.gguf", metadata, stored)
    assert torch.equal(logits(load(guessing)), logits(load(path)))


def test_frequencies_that_are_not_gemma_4s_are_refused(tmp_path: Path):
    metadata = json.loads(METADATA.read_text())["gemma4-experts"]
    stored = dict(tensors(metadata, build("gemma4-experts")))
    stored["rope_freqs.weight"] = torch.linspace(1, 8, len(stored["rope_freqs.weight"]))
    with pytest.raises(ModelLoadError, match=r"rope_freqs\.weight is not that of a Gemma 4"):
        load(write_gguf(tmp_path / "m.gguf", metadata, stored))


def test_a_type_that_is_not_loaded_is_named(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 36), np.uint8), raw_dtype=Type.Q1_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match=r"token_embd\.weight is stored as Q1_0"):
        load(tmp_path / "m.gguf")


def test_all_tokens_that_end_an_answer_are_known(tmp_path: Path):
    tokens = ["a", "<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>"]
    metadata = LLAMA | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1, 3, 3, 3, 1],  # the last is an ordinary one
        "tokenizer.ggml.eos_token_id": 3,
    }
    path = write_gguf(tmp_path / "m.gguf", metadata, dict(tensors(LLAMA, build("llama"))))
    assert eos_token_ids(path) == (1, 2, 3)
