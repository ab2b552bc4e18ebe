from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from axion.errors import ModelLoadError
from axion.models import registry
from axion.models.base import CausalLM
from axion.models.llama import LlamaForCausalLM
from axion.models.registry import load_model_class, model_classes


class PluginForCausalLM(CausalLM):
    architectures = ("PluginForCausalLM", "LlamaForCausalLM")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    point = EntryPoint("any", f"{__name__}:PluginForCausalLM", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([point]))
    model_classes.cache_clear()
    yield
    model_classes.cache_clear()


def test_a_class_is_found_by_the_name_it_declares() -> None:
    assert load_model_class(["LlamaForCausalLM"]) is LlamaForCausalLM


def test_the_first_known_architecture_is_taken() -> None:
    assert load_model_class(["LlamaForReading", "LlamaForCausalLM"]) is LlamaForCausalLM


def test_unknown_architecture_is_refused_with_what_there_is() -> None:
    with pytest.raises(ModelLoadError, match=r"FooForCausalLM.*LlamaForCausalLM") as caught:
        load_model_class(["FooForCausalLM"])
    assert "auto_map" not in caught.value.message


def test_remote_code_is_named_as_what_is_missing() -> None:
    with pytest.raises(ModelLoadError, match="auto_map"):
        load_model_class(["FooForCausalLM"], has_remote_code=True)


def test_a_known_architecture_with_remote_code_is_served_by_axion_s_own_class() -> None:
    assert load_model_class(["LlamaForCausalLM"], has_remote_code=True) is LlamaForCausalLM


@pytest.mark.usefixtures("plugin")
def test_a_plugin_adds_architectures_and_replaces_none() -> None:
    assert load_model_class(["PluginForCausalLM"]).__name__ == "PluginForCausalLM"
    assert load_model_class(["LlamaForCausalLM"]) is LlamaForCausalLM
