from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import Hub, Repo, files, hub

__all__ = ["files", "hub"]


def download(name: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    command = [sys.executable, "-m", "axion", "download", name]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_serving_needs_is_in_the_folder_that_is_printed(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRUST_REMOTE_CODE", "true")
    hub.repos["org/model"] = Repo(files | {"flax_model.msgpack": b"x", "modeling_own.py": b""})
    found = download("org/model")
    assert found.returncode == 0, found.stderr
    folder = Path(found.stdout.strip())
    assert (folder / "config.json").is_file()
    assert (folder / "modeling_own.py").is_file()
    assert not (folder / "flax_model.msgpack").exists()


def test_what_cannot_be_had_is_a_sentence_and_an_exit_status(hub: Hub):
    missing = download("org/nothing")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no model org/nothing" in " ".join(missing.stderr.split())
