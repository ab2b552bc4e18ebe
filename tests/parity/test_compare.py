"""What `axion parity` finds out, without its process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from axion.engine import loader
from axion.errors import AxionError, InvalidRequestError
from axion.models.base import CausalLM
from axion.models.llama import LlamaForCausalLM
from axion.models.qwen3 import Qwen3ForCausalLM
from axion.parity import compare as comparing
from axion.parity.compare import compare
from axion.parity.harness import WAYS, Harness
from axion.parity.messages import CompareRequest
from axion.parity.tiny import base_config, build, shrink
from tests.parity.checkpoints import save_tiny


def request(model: str, path: Path | None = None, **fields: object) -> CompareRequest:
    fields = {"tiny": path is None, "dtype": "float32", "num_tokens": 8, **fields}
    return CompareRequest(model=model, path=None if path is None else str(path), **fields)


@pytest.mark.parametrize("model", ["qwen3", "Gemma3ForCausalLM", "Qwen4ExpForCausalLM"])
def test_an_architecture_is_equal_by_its_name_alone(model: str) -> None:
    report = compare(request(model))
    assert report.equal, report.fault
    assert [generation.way for generation in report.generations] == list(WAYS)
    assert {module.name for module in report.modules} >= {
        "",
        "model.embed_tokens",
        "model.layers.1.mlp",
    }


def test_tokens_that_differ_from_step_to_step_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[object]:
        return WAYS["alone"](harness, [[*prompt[:-1], 5] for prompt in prompts], num_tokens)

    monkeypatch.setitem(comparing.WAYS, "forgetful", forgetful)
    report = compare(request("llama"))
    assert report.fault is None
    assert not report.equal
    assert "token 1" in report.generations[-1].reason


def test_a_text_is_compared_by_the_models_own_tokenizer(tiny_model: Path) -> None:
    report = compare(request("m", tiny_model, prompts=("The quick brown fox", "Hi")))
    assert report.equal
    assert report.prompt_lengths == tuple(sorted(report.prompt_lengths))


def test_a_prompt_reaches_beyond_the_window(tiny_model: Path, tmp_path: Path) -> None:
    save_tiny("mistral", tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (tiny_model / file).read_text()
        (tmp_path / file).write_text(text)
    # Two letters, which have ids that the small vocabulary has.
    prompts = {"prompts": ("ab",)}
    assert compare(request("m", tmp_path, **prompts)).notes == ()
    [note] = compare(request("m", tmp_path, **prompts, max_prompt_tokens=8)).notes
    assert "--max-prompt-tokens 20" in note


def test_an_architecture_that_transformers_class_serves_is_compared(
    tiny_model: Path, tmp_path: Path
) -> None:
    config = shrink(base_config("BioGptForCausalLM"))
    build(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tiny_model / "tokenizer.json").read_text())
    report = compare(request("m", tmp_path, prompts=("ab",), num_tokens=2))
    assert report.equal


def test_a_module_that_only_transformers_has_is_the_first_that_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_class(monkeypatch, lambda: LlamaForCausalLM)
    report = compare(request("qwen3"))
    assert report.fault is not None
    assert report.fault.module == "model.layers.0.self_attn.q_norm"


def test_a_module_that_only_axion_has_is_the_first_that_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_class(monkeypatch, lambda: Qwen3ForCausalLM)
    report = compare(request("llama"))
    assert report.fault is not None
    assert report.fault.module == "model.layers.0.self_attn.k_norm"
    assert "transformers has no" in report.fault.reason


def replace_class(monkeypatch: pytest.MonkeyPatch, cls: Callable[[], type[CausalLM]]) -> None:
    for module in (loader, comparing):
        monkeypatch.setattr(module, "load_model_class", lambda *_, **__: cls())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nonesuch", "no architecture"),
        ("doge", "masks of its own"),
        ("xlnet", "not supported|No small configuration|does not suit"),
    ],
)
def test_what_cannot_be_compared_says_why(model: str, words: str) -> None:
    with pytest.raises(AxionError, match=words):
        compare(request(model))


def test_a_configuration_that_transformers_does_not_know_says_so(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "nonesuch"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AxionError, match=r"transformers cannot read config\.json"):
        compare(request("m", tmp_path, tiny=True))


def test_a_tiny_model_has_no_texts() -> None:
    with pytest.raises(InvalidRequestError, match="--prompt"):
        compare(request("llama", prompts=("Hello",)))


def test_a_folder_of_which_only_the_configuration_is_there(tmp_path: Path) -> None:
    base_config("qwen3").save_pretrained(tmp_path)
    report = compare(request("m", tmp_path, tiny=True))
    assert report.equal
    assert report.architecture == "Qwen3ForCausalLM"
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 32


def test_a_small_model_keeps_a_layer_of_each_kind() -> None:
    small = shrink(base_config("gemma3_text"))
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert small.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0
    assert shrink(base_config("deepseek_v3")).first_k_dense_replace == 1
