"""What the metadata of GGUF files says of a model, and what is refused of it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axion.errors import ModelLoadError
from axion.hub.gguf import GGUF, TENSOR_TYPES, StoredTensor
from axion.hub.gguf_config import gguf_architecture, gguf_config, gguf_generation_config
from axion.text.tokenizer_formats.gguf import convert
from tests.gguf_files import METADATA

RECORDED = json.loads(METADATA.read_text())
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<|end|>", "<|return|>", "<|call|>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3, 3, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 4,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
    "general.sampling.temp": 0.6000000238418579,
    "general.sampling.top_k": 20,
}


def gguf(case: str, **changes: Any) -> GGUF:
    shapes = {"token_embd.weight": (199, 64), "position_embd.weight": (512, 64)}
    tensors = {
        name: StoredTensor(name, shape, TENSOR_TYPES[0], 0, Path("m.gguf"), 0)
        for name, shape in shapes.items()
    }
    metadata = RECORDED[case] | TOKENIZER | changes
    return GGUF((Path("m.gguf"),), metadata, tensors)


def test_numbers_are_those_that_were_meant():
    config = gguf_config(gguf("llama", **{"llama.attention.layer_norm_rms_epsilon": 1e-6 + 3e-14}))
    assert config["rms_norm_eps"] == 1e-6
    assert config["rope_parameters"]["partial_rotary_factor"] == 1.0


def test_a_value_for_each_layer_must_be_one_for_all():
    same = gguf("llama", **{"llama.attention.head_count_kv": [2, 2]})
    assert gguf_config(same)["num_key_value_heads"] == 2
    other = gguf("llama", **{"llama.attention.head_count_kv": [2, 1]})
    with pytest.raises(ModelLoadError, match="head_count_kv differs from layer to layer"):
        gguf_config(other)


@pytest.mark.parametrize("key", ["attention.key_length_mla", "rope.scaling.yarn_log_multiplier"])
def test_a_text_is_no_number(key: str):
    with pytest.raises(ModelLoadError, match=rf"deepseek2\.{key} must be a .*got many"):
        gguf_config(gguf("deepseek-v2", **{f"deepseek2.{key}": "many"}))


@pytest.mark.parametrize(
    ("length", "kinds"),
    [(202_752, ["full"] * 8), (2**20, [*["full"] * 3, *["shared"] * 3, "full", "shared"])],
)
def test_which_layers_choose_tokens_is_known_of_older_files_too(length: int, kinds: list[str]):
    file = gguf("glm-moe-dsa", **{"glm-dsa.block_count": 8, "glm-dsa.context_length": length})
    del file.metadata["glm-dsa.attention.indexer.types"]
    assert gguf_config(file)["indexer_types"] == kinds


def test_layers_without_experts_are_no_llama_4():
    with pytest.raises(ModelLoadError, match="its layers are all alike"):
        gguf_config(gguf("llama4", **{"llama4.attention.sliding_window": 0}))


def test_sampling_defaults_and_ends_are_in_the_file():
    config = gguf_generation_config(gguf("llama"))
    # Where there are both of harmony's ends, <|end|> is only a message's.
    assert config == {"temperature": 0.6, "top_k": 20, "eos_token_id": [4, 5]}


@settings(max_examples=150)
@given(data=st.data())
def test_whatever_the_values_they_are_read_or_refused(data: st.DataObject):
    file = gguf(data.draw(st.sampled_from(sorted(RECORDED))))
    scalars = st.one_of(
        st.integers(-(2**63), 2**64 - 1),
        st.sampled_from([0, 1, 2**31 - 1, -1]),
        st.floats(),
        st.booleans(),
        st.text(max_size=8),
    )
    values = st.one_of(scalars, st.lists(scalars, max_size=4), st.lists(st.lists(scalars)))
    for key in data.draw(st.lists(st.sampled_from(sorted(file.metadata)), max_size=3)):
        if key != "general.architecture":
            file.metadata[key] = data.draw(values)
    for read in (gguf_architecture, gguf_config, gguf_generation_config):
        with suppress(ModelLoadError):  # which has a message, as above
            read(file)
    with suppress(ModelLoadError):
        convert(file.metadata)
