"""One real server for all clients, and the packages of those that cannot share our environment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_server import start

INSTALL_TIMEOUT_S = 200
RUN_TIMEOUT_S = 60
# How npm and pip say that nobody answers.
NO_REGISTRY = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH"
    r"|NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError"
)


@pytest.fixture(scope="package")
def url(
    tmp_path_factory: pytest.TempPathFactory, sentence_model: Path, cross_encoder: Path
) -> Iterator[str]:
    """The address of `python -m axion` with the bundled model, `minilm` and `cross`."""
    folder = tmp_path_factory.mktemp("clients")
    server = start(
        folder,
        EMBEDDING_MODEL=f"minilm={sentence_model}",
        RERANK_MODEL=f"cross={cross_encoder}",
        CPU_THREADS="1",
    )
    yield server.url
    assert server.stop() == 0
    log = (folder / "server.log").read_text()
    assert "Warning" not in log
    assert "Traceback" not in log


def install(lock: Path, *command: str) -> Path:
    """A folder in the user's cache with the packages that `lock` pins.

    Args:
        lock: a file; its digest names the folder, so that this is done once.
        command: installs into the current folder, which has the lock and what lies beside it.
    """
    digest = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "axion" / "test-clients" / f"{lock.parent.name}-{digest}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        shutil.copytree(lock.parent, new)
        done = subprocess.run(
            command, cwd=new, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
        if done.returncode != 0 and NO_REGISTRY.search(done.stderr):
            pytest.skip(f"the package registry does not answer; {lock.name} cannot be installed")
        assert done.returncode == 0, done.stderr
        if not folder.exists():  # another run may have been quicker
            new.rename(folder)
    return folder


def run_script(*command: str | Path, **environment: str) -> dict[str, Any]:
    """What a client's script prints: one JSON object, with what each of its steps had back."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
