"""The starting file of an architecture, without the command."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from axion.errors import InvalidRequestError
from axion.models.base import CausalLM
from axion.models.config import DecoderConfig
from axion.parity import new_model
from axion.parity.messages import NewModelRequest
from axion.parity.tiny import base_config, shrink


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"there already: axion\.models\.qwen3"):
        new_model.write(NewModelRequest(name="qwen3", checkout=str(tmp_path)))


def test_a_model_that_also_sees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="text part"):
        new_model.write(
            NewModelRequest(name="LlavaForConditionalGeneration", checkout=str(tmp_path))
        )


@pytest.mark.parametrize("name", ["qwen3", "mistral", "mixtral", "deepseek_v3", "olmo3"])
def test_the_file_declares_the_familys_defaults(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = base_config(name)
    [architecture] = config.architectures
    source = new_model._source(architecture, config)
    module = ModuleType("new_model")
    monkeypatch.setitem(sys.modules, "new_model", module)
    exec(compile(source, "new_model.py", "exec"), vars(module))
    model_class = getattr(module, architecture)
    declared = model_class.config_cls.from_dict(shrink(config).to_dict())
    assert declared.hidden_size == 64
    assert max(len(line) for line in source.splitlines()) <= 100


def test_relatives_tensors_and_fields_are_told() -> None:
    config = base_config("qwen3")
    assert any(
        line.startswith("Qwen3Attention: LlamaAttention") for line in new_model._relatives(config)
    )


def test_a_field_that_nobody_declares_hides_no_parameter() -> None:
    class Undeclared(CausalLM):
        config_cls = DecoderConfig

    small = shrink(base_config("nanochat"))
    moving = new_model._moving_fields(small, DecoderConfig)
    assert moving["final_logit_softcapping"] == 15.0
    lacking = new_model._tensors(small, Undeclared, moving)
    assert "model.layers.*.mlp.fc1.weight" in lacking
