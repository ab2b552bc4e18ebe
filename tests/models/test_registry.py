from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import axion.models
from axion.errors import ModelLoadError
from axion.models import registry
from axion.models.base import CausalLM
from axion.models.llama import LlamaForCausalLM
from axion.models.registry import load_embedding_class, load_model_class


class PluginForCausalLM(CausalLM):
    architectures = ("PluginForCausalLM", "LlamaForCausalLM")


def model_class(*architectures: str, **fields: Any) -> type[CausalLM]:
    return load_model_class({"architectures": [*architectures], **fields})


@pytest.fixture(
    params=["class (\n", "import no_such_module\n", "from axion.models.llama import Gone\n"],
    ids=["syntax", "import", "name"],
)
def broken_file(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    text = f'{request.param}class A(CausalLM):\n    architectures = ("ArceeForReading",)\n'
    (tmp_path / "broken_file.py").write_text(text)
    monkeypatch.setattr(axion.models, "__path__", [*axion.models.__path__, str(tmp_path)])
    registry.scan.cache_clear()
    yield
    registry.scan.cache_clear()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    point = EntryPoint("any", f"{__name__}:PluginForCausalLM", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([point]))
    registry.scan.cache_clear()
    yield
    registry.scan.cache_clear()


def test_a_class_is_found_by_the_name_it_declares() -> None:
    assert model_class("LlamaForCausalLM") is LlamaForCausalLM


def test_the_first_known_architecture_is_taken() -> None:
    assert model_class("LlamaForReading", "LlamaForCausalLM") is LlamaForCausalLM


def test_unknown_architecture_is_refused_in_a_sentence() -> None:
    with pytest.raises(ModelLoadError) as caught:
        model_class("FooForCausalLM")
    assert caught.value.message == (
        "The architecture FooForCausalLM is not supported. docs/models.md lists those that are."
    )


def test_remote_code_is_named_as_what_is_missing() -> None:
    with pytest.raises(ModelLoadError, match="auto_map"):
        model_class("FooForCausalLM", auto_map={"AutoModelForCausalLM": "foo.Foo"})


def test_a_known_architecture_with_remote_code_is_served_by_axion_s_own_class() -> None:
    auto_map = {"AutoModelForCausalLM": "foo.Foo"}
    assert model_class("LlamaForCausalLM", auto_map=auto_map) is LlamaForCausalLM


@pytest.mark.usefixtures("plugin")
def test_a_plugin_adds_architectures_and_replaces_none() -> None:
    assert model_class("PluginForCausalLM").__name__ == "PluginForCausalLM"
    assert model_class("LlamaForCausalLM") is LlamaForCausalLM


@pytest.mark.usefixtures("broken_file")
@pytest.mark.parametrize("load", [load_model_class, load_embedding_class])
def test_a_file_with_a_fault_takes_only_its_own_architectures_along(
    load: Callable[[dict[str, Any]], type], tmp_path: Path
) -> None:
    assert load({"architectures": ["LlamaForCausalLM"]}) is LlamaForCausalLM
    with pytest.raises(
        ModelLoadError, match=r"module axion.models.broken_file .*Error: "
    ) as caught:
        load({"architectures": ["ArceeForReading"]})
    assert str(tmp_path.parent.parent) not in caught.value.message
    with pytest.raises(ModelLoadError, match="FooForCausalLM is not supported"):
        load({"architectures": ["FooForCausalLM"]})


def test_a_plugin_with_a_fault_takes_no_other_model_along(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("any", "no_such_package:Model", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([point]))
    registry.scan.cache_clear()
    try:
        assert model_class("LlamaForCausalLM") is LlamaForCausalLM
        with pytest.raises(ModelLoadError, match=r"no_such_package .*ModuleNotFoundError"):
            model_class("FooForCausalLM")
    finally:
        registry.scan.cache_clear()
