"""Triton's kernels where there is no GPU: interpreted on the CPU, and compiled for one.

Both change triton for the whole process (it decides to interpret when it is imported, and a driver
is the process's), so each is a process of its own: tests of other modules, which a worker of xdist
mixes with these, see nothing of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
# Of consumer Ampere and Ada; others have more.
MAX_SHARED_BYTES = 99 * 1024


def run(*command: str, **variables: str) -> str:
    """What a Python of its own prints; an error if it fails."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.timeout(400)
def test_kernels_compute_what_torch_does() -> None:
    modules = [
        f"tests/gpu/test_{name}.py"
        for name in ("attention", "elementwise", "grouped", "low_bit", "model")
    ]
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--confcutdir", "tests/gpu"]
    out = run("-m", "pytest", *options, *modules, TRITON_INTERPRET="1")
    assert " passed" in out
    assert "skipped" not in out


@pytest.mark.timeout(400)
def test_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    out = run("-m", "tests.gpu.compile_kernels", "80", "90", TRITON_CACHE_DIR=str(tmp_path))
    lines = [line.split() for line in out.splitlines()]
    names = ["_attend", "_join", "_store", "_rms_norm", "_gated", "_rotate", "_sinkhorn"]
    names += ["_grouped", "_sum", "_unpack"]
    for name in names:
        assert {arch for kernel, arch, _ in lines if kernel == name} == {"80", "90"}
    assert max(int(shared) for _, _, shared in lines) <= MAX_SHARED_BYTES
