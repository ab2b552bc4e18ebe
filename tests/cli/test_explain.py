from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from axion.backends.engines import spawned_engines
from axion.cli.main import main
from tests.backends.engine_models import write_model
from tests.hub.conftest import Hub, Repo, files, hub

__all__ = ["files", "hub"]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for engine in spawned_engines():
        monkeypatch.delenv(engine.command_variable, raising=False)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["explain", *args])
    return int(caught.value.code or 0)


def decision(capfd: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    run(*args, "--json")
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_a_model_that_an_engine_serves_exits_zero(capfd: pytest.CaptureFixture[str]):
    assert run("axion/demo") == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "AXION_MAX_COMMAND" in out
    assert "native would serve it" in out


def test_a_model_that_none_serves_exits_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    model = write_model(tmp_path / "m", architectures=["NopeForCausalLM"])
    assert run(str(model)) == 1
    assert "No engine can serve it." in capfd.readouterr().out


def test_the_decision_is_json(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BACKEND_WEIGHTS", "max=0.9")  # which is not among those that are judged
    found = decision(capfd, "axion/demo", "--backends", "native,vlm", "--device", "cpu")
    assert (found["model"], found["device"]) == ("axion/demo", "cpu")
    assert [(v["engine"], v["accepted"], v["code"]) for v in found["verdicts"]] == [
        ("native", True, "accepted"),
        ("vlm", False, "unknown_engine"),
    ]


def run_alone(*args: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    command = [sys.executable, "-m", "axion", "explain", *args]
    return subprocess.run(command, capture_output=True, text=True)


def test_of_a_model_elsewhere_no_weights_are_fetched(hub: Hub, files: dict[str, bytes]):
    hub.repos["org/model"] = Repo(files, sizes={"model.safetensors": 10**15})
    found = run_alone("org/model", "--json")
    assert found.returncode == 1, found.stderr
    assert hub.downloads() == ["config.json"]
    # Its weights are known by their size.
    assert json.loads(found.stdout)["verdicts"][-1]["code"] == "not_enough_memory"

    # Of the files beside an index, those that it names count.
    shard = "model-00001-of-00001.safetensors"
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"w": shard}}).encode()
    del files["model.safetensors"]
    files |= {shard: b"s", "variant.safetensors": b"v"}
    hub.repos["org/indexed"] = Repo(files, sizes={"variant.safetensors": 10**15})
    found = run_alone("org/indexed")
    assert "native would serve it" in found.stdout
    assert "Its weights were not fetched" in found.stdout
    assert set(hub.downloads()) == {"config.json", "model.safetensors.index.json"}

    missing = run_alone("org/nothing")
    assert missing.returncode == 1
    assert "no model org/nothing" in " ".join(missing.stderr.split())
