from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from axion.cli import parity as command
from axion.cli.main import main
from axion.parity.compare import compare

PLUGIN = """
from axion.models.base import HeadNormAttention
from axion.models.qwen3 import Qwen3ForCausalLM

class Forgetful(HeadNormAttention):
    def rotate_qk(self, q, k, context):
        cos, sin = self.rotary_emb(context, q.dtype)
        return self.apply_rotary(q, cos, sin, self.q_norm), self.apply_rotary(k, cos, sin)

class ForgetfulForCausalLM(Qwen3ForCausalLM):
    architectures = ("ForgetfulForCausalLM",)
    attention_cls = Forgetful
"""


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with an architecture that skips a norm, and a folder with its configuration."""
    folder = tmp_path_factory.mktemp("forgetful")
    (folder / "forgetful.py").write_text(PLUGIN)
    dist_info = folder / "forgetful-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: forgetful\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text(
        "[axion.models]\nforgetful = forgetful:ForgetfulForCausalLM\n"
    )
    config = {"architectures": ["ForgetfulForCausalLM"], "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["parity", *args])
    return int(caught.value.code or 0)


def test_a_plugin_that_skips_a_norm_is_told_so(
    forgetful: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(forgetful))
    monkeypatch.setenv("PYTHONPATH", str(forgetful), prepend=":")
    assert run(str(forgetful), "--tiny") == 1
    out = " ".join(capfd.readouterr().out.split())
    assert "The first that differs is model.layers.0.self_attn.k_norm" in out
    assert "ForgetfulForCausalLM, beside transformers' Qwen3ForCausalLM" in out


def test_the_report_is_json_and_an_equal_model_exits_zero(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "ask", lambda request, what: compare(request))  # no process
    assert run("axion/demo", "--json", "-p", "Hello, who are you?") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["equal"] is True
    assert found["report"]["architecture"] == "LlamaForCausalLM"
    assert all(generation["equal"] for generation in found["report"]["generations"])
    assert max(module["difference"]["max_rel"] for module in found["report"]["modules"]) < 1e-4


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("axion/demo", "--dtype", "int8"), "--dtype must be"),
        (("./nowhere",), "does not exist"),
    ],
)
def test_what_cannot_be_compared_exits_two(
    args: tuple[str, ...], words: str, capfd: pytest.CaptureFixture[str]
):
    assert run(*args) == 2
    assert words in " ".join(capfd.readouterr().err.split())


def test_the_command_itself_imports_no_torch():
    code = "import sys, axion.cli.parity, axion.cli.new_model; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
