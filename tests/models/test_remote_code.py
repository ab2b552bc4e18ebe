"""Python that comes with a model is run where it is asked for, and nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from axion import InferenceRequest, NativeBackend
from axion.cli.loading import model_config
from axion.engine.loader import load_model
from axion.errors import ModelLoadError
from axion.models.llama import LlamaForCausalLM
from axion.models.registry import load_embedding_class, load_model_class
from axion.models.transformers_fallback import TransformersCausalLM
from axion.parity.harness import Harness, chunked
from axion.router.plan import plan
from axion.settings import Settings
from tests.parity.catalog import next_logits

CPU = torch.device("cpu")
EXECUTED = "AXION_TEST_EXECUTED"
CONFIGURATION = """
from transformers import LlamaConfig

class TinyConfig(LlamaConfig):
    model_type = "axion_tiny"

    def __init__(self, twist=3.0, **kwargs):
        self.twist = twist
        super().__init__(**kwargs)
"""
# It notes the process that runs it. What it computes differs from a Llama's.
MODELING = """
import os
from pathlib import Path

from torch import nn
from transformers import LlamaForCausalLM, LlamaModel

from .configuration_tiny import TinyConfig

Path(os.environ["AXION_TEST_EXECUTED"]).write_text(str(os.getpid()))

class Twist(nn.Module):
    def __init__(self, twist):
        super().__init__()
        self.twist = twist

    def forward(self, x):
        return self.twist * x.sin()

class TinyModel(LlamaModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp.act_fn = Twist(config.twist)

class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = TinyModel(config)
        self.post_init()
"""
AUTO_MAP = {
    "AutoConfig": "configuration_tiny.TinyConfig",
    "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
}


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Is there when the model's code has been run."""
    monkeypatch.setenv(EXECUTED, str(tmp_path / "executed"))
    return tmp_path / "executed"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, executed: Path) -> Path:
    """A tiny Llama's weights and tokenizer, with a class of its own."""
    folder = tmp_path / "own-model.v1"
    shutil.copytree(tiny_model, folder)
    change(folder, architectures=["TinyForCausalLM"], model_type="axion_tiny", auto_map=AUTO_MAP)
    (folder / "configuration_tiny.py").write_text(CONFIGURATION)
    (folder / "modeling_tiny.py").write_text(MODELING)
    return folder


def change(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def load(folder: Path, *, trust: bool = True) -> TransformersCausalLM:
    model = load_model(folder, device=CPU, dtype="float32", trust_remote_code=trust)
    assert isinstance(model, TransformersCausalLM)
    return model


def refused(folder: Path, *, trust: bool = True) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(folder, trust=trust)
    assert str(folder) not in caught.value.message
    return caught.value.message


def test_unless_it_is_asked_for_it_is_refused_and_not_run(folder: Path, executed: Path) -> None:
    message = refused(folder, trust=False)
    assert "TinyForCausalLM is not supported" in message
    assert "TRUST_REMOTE_CODE=true runs its author's code on this machine" in message
    assert not executed.exists()


def test_its_answers_are_those_of_transformers_with_the_same_code(
    folder: Path, executed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(folder.rglob("*"))
    model = load(folder)
    assert executed.read_text() == str(os.getpid())
    assert sorted(folder.rglob("*")) == before  # nothing is written beside it
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    reference: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    assert type(reference.config).__name__ == "TinyConfig"
    prompts = [[5, 9, 20, 7, 3], [(7 * i) % 90 for i in range(23)]]
    for run in chunked(Harness(model), prompts, 8):
        expected = next_logits(reference, run)
        assert run.output == expected.argmax(-1).tolist()
        assert (torch.stack(run.logits) - expected).abs().max() <= 1e-4
    change(folder, architectures=["LlamaForCausalLM"], model_type="llama")
    plain = load_model(folder, device=CPU, dtype="float32")
    [run] = chunked(Harness(plain), prompts[:1], 1)
    [own] = chunked(Harness(model), prompts[:1], 1)
    assert (run.logits[0] - own.logits[0]).abs().max() > 1e-2


async def test_the_server_runs_it_in_the_model_s_process_alone(
    folder: Path, executed: Path
) -> None:
    settings = Settings(
        model_name=str(folder),
        axion_backends="native",
        trust_remote_code=True,
        device="cpu",
        kv_cache_gib=0.01,
    )
    planned = await plan(model_config(settings), settings, lambda *_: None)
    [(backend, config)] = planned.backends
    assert isinstance(backend, NativeBackend)
    async with backend:
        await backend.load_model(config)
        answer = await backend.infer(InferenceRequest(prompt="The quick", max_tokens=3))
        assert answer.text
    assert executed.read_text() != str(os.getpid())


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Jais2ForCausalLM"])
def test_of_an_architecture_that_others_have_it_is_never_run(
    architecture: str, folder: Path, executed: Path
) -> None:
    change(folder, architectures=[architecture])
    config = json.loads((folder / "config.json").read_text())
    cls = load_model_class(config, folder)
    assert cls.__name__ == architecture
    assert (cls is LlamaForCausalLM) == (architecture == "LlamaForCausalLM")
    assert not executed.exists()


def test_it_makes_no_embeddings() -> None:
    config = {"architectures": ["TinyForCausalLM"], "auto_map": AUTO_MAP}
    with pytest.raises(ModelLoadError, match=r"auto_map.* is not run for embeddings"):
        load_embedding_class(config)


@pytest.mark.parametrize(
    ("auto_map", "said"),
    [
        (
            {"AutoConfig": "other/repo--configuration_tiny.TinyConfig"},
            "'other/repo--configuration_tiny.TinyConfig', code of another repository",
        ),
        ({"AutoConfig": ["configuration_tiny.TinyConfig"]}, "expected such as"),
        ({"AutoModelForCausalLM": "../modeling_tiny.TinyForCausalLM"}, "expected such as"),
        ({"AutoModelForCausalLM": "os.path"}, r"os\.py, which auto_map names, is not in"),
    ],
    ids=["other repository", "list", "other folder", "no file"],
)
def test_what_is_not_beside_config_json_is_refused_before_anything_is_run(
    auto_map: dict[str, Any], said: str, folder: Path, executed: Path
) -> None:
    change(folder, auto_map=AUTO_MAP | auto_map)
    with pytest.raises(ModelLoadError, match=said):
        load(folder)
    assert not executed.exists()


def rewrite(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (rewrite("import os\n", "import no_such_package\n"), "No module named 'no_such_package'"),
        (rewrite("LlamaForCausalLM,", "Gone,"), "cannot import name 'Gone'"),
        (rewrite("class TinyForCausalLM", "class Other"), "has no PreTrainedModel TinyForCausalLM"),
        (
            lambda text: (
                text + "\n    def forward(self, input_ids=None, use_cache=None,"
                " attention_mask=None, position_ids=None):\n        pass\n"
            ),
            "Axion serves TinyForCausalLM by the model's own class, which cannot be done: its"
            " attention does not go through transformers' interface.",
        ),
    ],
    ids=["package", "other version", "other class", "own attention"],
)
def test_code_that_cannot_be_used_is_refused_in_a_sentence(
    edit: Callable[[str], str], said: str, folder: Path
) -> None:
    (folder / "modeling_tiny.py").write_text(edit(MODELING))
    assert said in refused(folder)
