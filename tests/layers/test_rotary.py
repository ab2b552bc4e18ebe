"""Rotary embeddings against transformers' formulas, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from axion.errors import ModelLoadError
from axion.layers.context import ForwardContext
from axion.layers.rotary import RopeParameters, apply_rotary, rotary_embedding

HEAD_DIM = 32
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i for i in range(16)],
    "long_factor": [3.0 + i for i in range(16)],
    "original_max_position_embeddings": 128,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0}
LINEAR = {"rope_type": "linear", "factor": 3.0}
ROPES = [
    LINEAR,
    DYNAMIC,
    YARN,
    YARN | {"factor": None},
    YARN | {"truncate": False},
    YARN | {"beta_fast": 1.0, "beta_slow": 1.0},  # a ramp without width
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    YARN | {"mscale": 0.7},
    YARN | {"attention_factor": 0.5},
    YARN | {"factor": 1.0},
    YARN | {"partial_rotary_factor": 0.5},
    LLAMA3,
    LLAMA3 | {"partial_rotary_factor": 0.25},
    LONGROPE,
    LONGROPE | {"factor": 16.0},
    LONGROPE | {"factor": 1.0},
    LONGROPE | {"attention_factor": 1.25},
]


def parameters(rope: dict[str, Any], **config: Any) -> RopeParameters:
    return RopeParameters.from_config(
        {"rope_parameters": dict(rope), **config},
        max_position_embeddings=512,
        rope_theta=10_000.0,
    )


def context(positions: list[int], rope_lengths: list[int]) -> ForwardContext:
    empty = torch.empty(0)
    return ForwardContext(
        positions=torch.tensor(positions),
        rope_lengths=torch.tensor(rope_lengths),
        slot_mapping=empty,
        block_tables=empty,
        context_lens=empty,
        query_lens=[],
        context_lens_list=[],
        kv_caches=[],
        block_size=16,
    )


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("length", [1, 128, 129, 512, 513, 3000])
def test_frequencies_and_scaling_are_those_of_transformers(
    rope: dict[str, Any], length: int
) -> None:
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 10_000.0, **rope},
    )
    expected, scaling = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=length)
    embedding = rotary_embedding(parameters(rope), HEAD_DIM)
    frequencies = embedding.token_frequencies(torch.tensor([length]))
    torch.testing.assert_close(frequencies.reshape(-1), expected, rtol=1e-6, atol=0)
    assert embedding.attention_factor == pytest.approx(scaling)


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE])
def test_a_token_s_angles_depend_on_its_own_sequence_only(rope: dict[str, Any]) -> None:
    embedding = rotary_embedding(parameters(rope), HEAD_DIM)
    lengths = [100, 600, 129]
    together = embedding(context([5, 5, 5], lengths), torch.float32)
    for row, length in enumerate(lengths):
        alone = embedding(context([5], [length]), torch.float32)
        for table, one in zip(together, alone, strict=True):
            torch.testing.assert_close(table[row], one[0], rtol=0, atol=0)
    assert not torch.equal(together[0][0], together[0][1])


def test_layers_with_equal_parameters_share_the_tables() -> None:
    step = context([3], [4])
    first, second = (rotary_embedding(parameters(LLAMA3), HEAD_DIM) for _ in range(2))
    other = rotary_embedding(parameters(LINEAR), HEAD_DIM)
    tables = first(step, torch.float32)
    assert second(step, torch.float32) is tables
    assert not torch.equal(other(step, torch.float32)[0], tables[0])


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        (LINEAR, [0, 0, 0, 0]),
        (DYNAMIC, [0, 0, 0, 513]),
        (LONGROPE, [0, 1, 1, 1]),
    ],
)
def test_cache_key_tells_prompts_apart_that_rotate_differently(
    rope: dict[str, Any], keys: list[int]
) -> None:
    embedding = rotary_embedding(parameters(rope), HEAD_DIM)
    assert [embedding.cache_key(n) for n in (128, 129, 512, 513)] == keys


def test_partial_rotation_leaves_the_rest_of_a_head_alone() -> None:
    embedding = rotary_embedding(
        parameters({"rope_type": "default"}, partial_rotary_factor=0.25), HEAD_DIM
    )
    x = torch.randn(1, 2, HEAD_DIM)
    rotated = apply_rotary(x, *embedding(context([7], [8]), torch.float32))
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    assert not torch.isclose(rotated[..., :8], x[..., :8]).any()
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_parameters": LLAMA3, "rope_theta": 5e5},
        {
            "rope_theta": 5e5,
            "rope_scaling": {k: v for k, v in YARN.items() if "length" not in k},
        },
        {
            "rope_scaling": YARN,
            "original_max_position_embeddings": 64,
        },
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {},
    ],
)
def test_older_and_newer_configs_are_read_as_transformers_reads_them(
    fields: dict[str, Any],
) -> None:
    config = LlamaConfig.from_dict({"max_position_embeddings": 512, **fields})
    config.standardize_rope_params()  # which a model does again when it is built
    read = RopeParameters.from_config(
        fields, max_position_embeddings=512, rope_theta=LlamaConfig.default_theta
    )
    for name, value in config.rope_parameters.items():
        if name != "type":
            assert getattr(read, name) == value


@pytest.mark.parametrize(
    ("rope", "names"),
    [
        ({"rope_type": "mrope", "mrope_section": [1, 2]}, "'mrope'"),
        ({"type": "su"}, "'su'"),
        ({"rope_type": ["yarn"]}, "yarn"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": None}, "factor"),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 1000}, "alpha"),
        ({"rope_type": "default", "factor": 2.0}, "factor"),
        (LLAMA3 | {"attention_factor": 2.0}, "attention_factor"),
        (LONGROPE | {"long_mscale": 2.0}, "long_mscale"),
        (LONGROPE | {"short_factor": [1.0]}, "short_factor"),
        (LONGROPE | {"long_factor": "x"}, "long_factor"),
        (LONGROPE | {"original_max_position_embeddings": 1}, "longrope"),
        (LINEAR | {"factor": "2"}, "factor"),
        (LINEAR | {"factor": -1.0}, "factor"),
        (LINEAR | {"factor": float("nan")}, "factor"),
        (LINEAR | {"factor": 1e-320}, "linear"),
        (LINEAR | {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        (LINEAR | {"partial_rotary_factor": 0.001}, "linear"),
        (YARN | {"rope_theta": 1.0}, "yarn"),
        (YARN | {"original_max_position_embeddings": -1}, "original_max_position_embeddings"),
        (["yarn"], "rope_parameters"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(rope: Any, names: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read = RopeParameters.from_config(
            {"rope_parameters": rope}, max_position_embeddings=512, rope_theta=10_000.0
        )
        rotary_embedding(read, HEAD_DIM)
    assert names in caught.value.message


def test_a_head_of_odd_size_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="head_dim 5"):
        rotary_embedding(parameters({"rope_type": "default"}), 5)
