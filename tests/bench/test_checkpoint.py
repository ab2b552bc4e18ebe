from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from axion.bench.checkpoint import make_shape, tokenizer
from axion.bench.limits import num_weights
from axion.bench.shapes import shape_config, shapes
from axion.bench.workload import WORDS
from axion.engine.assembly import load_engine
from axion.engine.loader import build_model
from axion.engine.messages import AddRequest
from axion.errors import ModelLoadError, ModelNotFoundError
from axion.types import EngineConfig, SamplingParams

TINY = {
    **shapes()["qwen3-0.6b"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 1000,
}
NUM_PARAMETERS = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "tiny"
    make_shape(TINY, path)
    return path


@pytest.mark.parametrize("name", sorted(NUM_PARAMETERS))
def test_a_shape_has_as_many_parameters_as_the_real_model(name: str):
    found = num_weights(build_model(shape_config(name)))
    assert found is not None
    assert found.read + found.unread == NUM_PARAMETERS[name]


def test_every_shape_is_of_an_architecture_that_axion_knows():
    for config in shapes().values():
        build_model(config)


def test_a_name_that_is_none_is_told_with_those_that_are():
    with pytest.raises(ModelNotFoundError, match=r"gpt-5.*llama-3\.2-1b"):
        shape_config("gpt-5")


def test_transformers_loads_what_is_written(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert model.dtype == torch.bfloat16
    weight = model.model.layers[0].mlp.gate_proj.weight.float()
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "time"}], tokenize=False)
    assert tokenizer.decode(tokenizer(prompt).input_ids) == "<|user|>time<|end|>"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [1000, 64]


def test_an_answer_is_text_and_does_not_end(folder: Path):
    core = load_engine(EngineConfig(model_path=str(folder), device="cpu", kv_cache_bytes=2**20))
    core.add(AddRequest("0", [300, 400], SamplingParams(temperature=0, max_tokens=64)))
    token_ids: list[int] = []
    while core.has_unfinished:
        for output in core.step():
            token_ids += output.token_ids
    assert len(token_ids) == 64
    assert min(token_ids) >= 260


def test_it_is_written_once(folder: Path):
    before = (folder / "model.safetensors").stat().st_mtime_ns
    make_shape(TINY, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ModelLoadError, match="something else"):
        make_shape({**TINY, "hidden_size": 128}, folder)


@pytest.mark.parametrize("vocab_size", [260, 1000, 32000])
def test_the_vocabulary_has_the_size_of_the_models(vocab_size: int):
    found = Tokenizer.from_str(json.dumps(tokenizer(vocab_size)))
    assert found.get_vocab_size() == vocab_size
    text = "".join(f" {word}" for word in WORDS) + " Grüße 你好"
    ids = found.encode(text).ids
    assert found.decode(ids) == text
    if vocab_size >= 1000:
        assert ids[: len(WORDS)] == [found.token_to_id(f"Ġ{word}") for word in WORDS]


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ModelLoadError, match="at least 260"):
        tokenizer(100)
