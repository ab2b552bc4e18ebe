"""The native engine's architectures are known without importing what computes them."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from axion.backends import architectures
from axion.backends.architectures import (
    fallback_architectures,
    native_architectures,
    native_quantizations,
    refused_architectures,
)
from axion.backends.native.backend import NativeBackend
from axion.models.registry import load_model_class, model_classes
from axion.models.transformers_fallback import TransformersCausalLM
from axion.quantization.registry import method_classes
from axion.settings import Settings


def test_they_are_those_of_the_registry():
    assert native_architectures() == model_classes().keys()


def test_the_methods_of_quantization_are_those_of_the_registry():
    names = {name for cls in method_classes() for name in cls.quant_methods}
    assert native_quantizations() == names
    assert {"fp8", "compressed-tensors"} <= names


@pytest.mark.parametrize("architecture", ["JetMoeForCausalLM", "HyperCLOVAXForCausalLM"])
async def test_what_was_measured_of_the_fallback_counts_too(architecture: str):
    assert architecture in fallback_architectures()
    assert issubclass(load_model_class([architecture]), TransformersCausalLM)
    facts = await NativeBackend.facts(Settings())
    assert facts.architectures is not None
    assert {architecture, "LlamaForCausalLM"} <= facts.architectures


def test_what_was_refused_does_not_count_and_says_why():
    assert "BartForCausalLM" not in fallback_architectures()
    assert "encoder" in refused_architectures()["BartForCausalLM"]


def test_they_are_not_known_where_a_package_adds_some(monkeypatch: pytest.MonkeyPatch):
    def entry_points(group: str) -> Any:
        assert group == "axion.models"
        return [importlib.metadata.EntryPoint("x", "x:Y", group)]

    monkeypatch.setattr(architectures, "entry_points", entry_points)
    assert native_architectures.__wrapped__() is None


def test_they_are_not_known_where_a_file_has_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "broken.py").write_text("class Broken(\n")
    monkeypatch.setattr(architectures.importlib.resources, "files", lambda _: tmp_path)
    assert native_architectures.__wrapped__() is None


def test_torch_is_not_imported_for_it():
    program = (
        "import sys; from axion.backends import architectures as a; "
        "assert a.native_architectures() and a.native_quantizations(); "
        "assert a.fallback_architectures(); "
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr
