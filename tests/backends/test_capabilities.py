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
from axion.backends.max import MaxBackend


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


def test_what_was_measured_here_of_max_on_a_gpu_beats_its_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = ModelConfig(model_name="m", device="cuda")
    backend = MaxBackend()
    backend.engine_version = "9.9"
    schema = ["response_format.json_schema"]
    assert not backend.capabilities_for(model, "m").missing(schema)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = measured_folder() / file_name("max", "9.9")
    path.parent.mkdir(parents=True)
    path.write_bytes(msgspec.json.encode(Capabilities(engine="max", version="9.9")))
    assert backend.capabilities_for(model, "m").missing(schema) == schema


def test_what_axion_makes_good_counts_as_honoured():
    known = Capabilities(
        engine="x",
        features=dict.fromkeys(["seed", "response_format.json_schema"], Support.HONOURED),
    )
    repaired = known.repaired()
    assert not repaired.missing(["seed", "seed.0", "structured_outputs.json"])
    left = ["stop", "structured_outputs.json_object", "structured_outputs.regex"]
    assert repaired.missing(left) == left
    # Where the text is cut here, the server must have told by then how many tokens there are.
    assert not known.repaired(tells_usage=True).missing(["stop", "include_stop_str_in_output"])


def test_a_backend_goes_by_the_version_of_its_engine(measured: Capabilities):
    backend = LlamaCppBackend()
    backend.engine_version = "9.9"
    assert backend.capabilities_for(ModelConfig(model_name="m"), "m.gguf") == measured
