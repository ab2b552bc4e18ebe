from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from axion.backends.engines import spawned_engines
from axion.cli import doctor
from axion.cli.main import main


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that is the whole PATH; torch is not loaded for each test."""
    facts = {"cuda": None, "num_threads": 2, "gpus": []}
    monkeypatch.setattr(doctor, "_torch", lambda: facts)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", f"{bin_folder}:/bin:/usr/bin")
    monkeypatch.chdir(tmp_path)
    for engine in spawned_engines():
        monkeypatch.delenv(engine.command_variable, raising=False)
    return bin_folder


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *args])
    return int(caught.value.code or 0)


def report(capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    run("--json")
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def engine(name: str, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (found,) = [e for e in report(capfd)["engines"] if e["name"] == name]
    return found


def test_healthy_machine_is_told_and_exits_zero(capfd: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capfd.readouterr().out
    for word in ("Python", "torch", "CPU", "Memory", "GPUs", "vLLM", "cache", "Axion can run"):
        assert word in out


def test_facts_of_this_machine_are_in_the_json(capfd: pytest.CaptureFixture[str]) -> None:
    found = report(capfd)
    assert found["packages"]["torch"]
    assert found["cpu"]["usable_threads"] >= 1
    assert found["memory"]["total_bytes"] > found["memory"]["available_bytes"] > 0
    assert found["cache"]["free_bytes"] > 0
    assert found["problems"] == []


def test_missing_package_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "REQUIRED_PACKAGES", ("no-such-package",))
    assert run() == 1
    assert "no-such-package is not installed" in " ".join(capfd.readouterr().out.split())


def test_torch_that_does_not_load_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "_TORCH_FACTS", "raise ImportError('libcuda.so is broken')")
    found = doctor._torch()
    assert found == {"error": "ImportError: libcuda.so is broken", "gpus": []}
    monkeypatch.setattr(doctor, "_torch", lambda: found)
    assert run() == 1
    assert "libcuda.so is broken" in " ".join(capfd.readouterr().out.split())


def test_torch_tells_its_devices_from_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    facts = doctor._torch()
    assert "error" not in facts
    assert facts["num_threads"] >= 1


def test_settings_that_cannot_be_used_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVER_PORT", "99999999")
    assert run() == 1
    assert "SERVER_PORT" in capfd.readouterr().out


def test_settings_file_in_use_is_shown(machine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (machine.parent / "axion.toml").write_text('model_name = "axion/demo"')
    settings = report(capfd)["settings"]
    assert settings["file"] == str(machine.parent / "axion.toml")
    assert settings["model_name"] == "axion/demo"


def test_taken_port_is_told_but_is_no_problem(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("SERVER_HOST", "127.0.0.1")
        monkeypatch.setenv("SERVER_PORT", str(taken.getsockname()[1]))
        found = report(capfd)
        assert found["settings"]["port_is_free"] is False
        assert found["problems"] == []
    assert report(capfd)["settings"]["port_is_free"] is True


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 'INFO loading'; echo 0.32.0", "0.32.0"),
        ("echo 'version: 6000 (abc)' >&2; echo 'built with gcc 13.2.0' >&2", "version: 6000 (abc)"),
        ("exit 3", None),
        ("echo none", None),
    ],
)
def test_engine_on_the_path_tells_its_version(
    machine: Path, script: str, version: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = program(machine / "vllm", script)
    found = engine("vLLM", capfd)
    assert (found["path"], found["version"]) == (str(path), version)


def test_engine_may_be_named_by_its_variable(
    machine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = program(tmp_path / "my max", 'echo "$1 26.7.0"')
    monkeypatch.setenv("AXION_MAX_COMMAND", f"'{path}' --flag")
    assert engine("MAX", capfd)["version"] == "--flag 26.7.0"


def test_gpu_that_torch_cannot_use_is_told(
    machine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program(machine / "nvidia-smi", "echo 'NVIDIA H200, 143771'; echo 'No devices were found'")
    assert report(capfd)["gpus"] == [
        {"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "usable": False}
    ]
    run()
    assert "cannot use it" in " ".join(capfd.readouterr().out.split())


def test_token_is_never_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    run("--json")
    run()
    out, err = capfd.readouterr()
    assert '"token": true' in out
    assert "hf_verysecret" not in out + err
