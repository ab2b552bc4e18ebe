"""Where a model's files come from, and what is said when they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastembed import TextEmbedding

from axion.errors import ModelLoadError
from axion.pooling.files import onnx_file, snapshot

MINILM = next(m for m in TextEmbedding._list_supported_models() if "all-MiniLM-L6" in m.model)


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", ["model.onnx", "onnx/model.onnx", "model_int8.onnx"])
def test_the_onnx_file_is_found(tmp_path: Path, name: str):
    assert onnx_file(make(tmp_path, name, *TOKENIZER)) == name


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["model.onnx"], "tokenizer.json"),
        (["model.onnx", "tokenizer.json"], "tokenizer_config.json"),
        (TOKENIZER, "model.onnx"),
        ([*TOKENIZER, "a.onnx", "b.onnx"], "model.onnx"),
    ],
)
def test_what_a_folder_lacks_is_named(tmp_path: Path, names: list[str], missing: str):
    with pytest.raises(ModelLoadError, match=missing):
        onnx_file(make(tmp_path, *names))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", str(tmp_path))
    return tmp_path


def test_a_model_that_is_not_here_and_cannot_be_downloaded_says_the_way_out(cache: Path):
    with pytest.raises(ModelLoadError, match="name its folder") as error:
        snapshot(MINILM)
    assert str(cache) not in error.value.message


def test_a_model_in_the_cache_needs_no_network(cache: Path):
    repo = cache / "models--Qdrant--all-MiniLM-L6-v2-onnx"
    files = make(repo / "snapshots" / "abc", "model.onnx", *TOKENIZER)
    make(repo, "refs/main").joinpath("refs/main").write_text("abc")
    assert snapshot(MINILM) == files
    (files / "model.onnx").unlink()
    with pytest.raises(ModelLoadError):
        snapshot(MINILM)
