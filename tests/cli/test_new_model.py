from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import axion
from axion.parity.new_model import ROWS

PACKAGE = Path(axion.__file__).parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that lacks Llama, and has an empty table of rows."""
    root = tmp_path_factory.mktemp("checkout")
    package = root / "axion"
    package.mkdir()
    for path in PACKAGE.iterdir():
        if path.name != "models":
            (package / path.name).symlink_to(path)
    lacking = shutil.ignore_patterns("llama.py", "__pycache__")
    shutil.copytree(PACKAGE / "models", package / "models", ignore=lacking)
    (root / ROWS).parent.mkdir(parents=True)
    (root / ROWS).write_text("CASES: dict[str, Case] = {\n}\n")
    return root


# Both requests of `axion new-model llama` and `axion parity LlamaForCausalLM --tiny`, one process.
BOTH = """
import sys
from axion.cli import parity
from axion.cli.main import main
from axion.models.registry import scan
from axion.parity.process import answer

parity.ask = lambda request, what: answer(request)
try:
    main(["new-model", "llama"])
except SystemExit as exit:
    assert not exit.code, exit.code
scan.cache_clear()
main(["parity", "LlamaForCausalLM", "--tiny"])
"""


def run(checkout: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=checkout)


def test_a_new_model_that_is_a_standard_decoder_is_equal_at_once(checkout: Path):
    done = run(checkout, "-c", BOTH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Wrote axion/models/llama.py and a row in tests/parity/checkpoints.py" in done.stdout
    source = (checkout / "axion" / "models" / "llama.py").read_text()
    assert 'architectures = ("LlamaForCausalLM",)' in source
    assert '\n    "llama": Case("LlamaForCausalLM"),\n}' in (checkout / ROWS).read_text()
    assert "Equal, in float32" in done.stdout


def test_an_installed_package_says_that_it_is_none(checkout: Path):
    (checkout / ROWS).rename(checkout / "rows")
    try:
        refused = run(checkout, "-m", "axion", "new-model", "llama")
    finally:
        (checkout / "rows").rename(checkout / ROWS)
    assert refused.returncode == 1
    assert "source checkout" in " ".join(refused.stderr.split())
