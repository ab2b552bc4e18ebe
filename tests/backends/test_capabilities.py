"""What was measured on this machine comes before what is shipped, for the version it is of."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from axion.backends.base import ModelConfig
from axion.backends.capabilities import (
    Capabilities,
    Support,
    capabilities_of,
    file_name,
    measured_folder,
    shipped_capabilities,
)
from axion.backends.llama_cpp import LlamaCppBackend


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Capabilities:
    """Something that was measured of llama.cpp 9.9."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    capabilities = Capabilities(
        engine="llama_cpp",
        version="9.9",
        measured="conformance",
        features={"echo": Support.HONOURED, "n": Support.DROPPED},
    )
    folder = measured_folder()
    folder.mkdir(parents=True)
    (folder / file_name("llama_cpp", "9.9")).write_bytes(msgspec.json.encode(capabilities))
    return capabilities


def test_what_was_measured_here_comes_first(measured: Capabilities):
    assert capabilities_of("llama_cpp", "9.9") == measured


@pytest.mark.parametrize("version", ["9.8", "", "../9.9", "9.9/../9.9"])
def test_another_version_has_what_is_shipped(measured: Capabilities, version: str):
    assert capabilities_of("llama_cpp", version) is shipped_capabilities("llama_cpp")


def test_data_that_cannot_be_read_is_passed_over(
    measured: Capabilities, caplog: pytest.LogCaptureFixture
):
    (measured_folder() / file_name("llama_cpp", "9.9")).write_bytes(b"{")
    assert capabilities_of("llama_cpp", "9.9") is shipped_capabilities("llama_cpp")
    assert "llama_cpp 9.9" in caplog.text


def test_a_backend_goes_by_the_version_of_its_engine(measured: Capabilities):
    backend = LlamaCppBackend()
    backend.engine_version = "9.9"
    assert backend.capabilities_for(ModelConfig(model_name="m"), "m.gguf") == measured
