"""Where a model's files come from, and what is said when they cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastembed import TextEmbedding
from fastembed.common.model_description import PoolingType

from axion.errors import ModelLoadError
from axion.pooling.files import onnx_file, pooling_type, snapshot

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


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, PoolingType.CLS),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}, PoolingType.MEAN),
        ({"pooling_mode_lasttoken": True}, PoolingType.LAST_TOKEN),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 8}, PoolingType.LAST_TOKEN),
        (None, PoolingType.MEAN),
    ],
)
def test_pooling_is_what_sentence_transformers_wrote(tmp_path: Path, config, pooling: PoolingType):
    if config is not None:
        make(tmp_path, "1_Pooling/config.json").joinpath("1_Pooling/config.json").write_text(
            json.dumps(config)
        )
    assert pooling_type(tmp_path) is pooling


@pytest.mark.parametrize(
    "config",
    [
        '{"pooling_mode_max_tokens": true}',
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}',
        '{"pooling_mode": "weightedmean"}',
        "{}",
        "[",
    ],
)
def test_pooling_that_is_not_supported_is_refused(tmp_path: Path, config: str):
    make(tmp_path, "1_Pooling/config.json")
    (tmp_path / "1_Pooling/config.json").write_text(config)
    with pytest.raises(ModelLoadError, match=r"pooling|read"):
        pooling_type(tmp_path)


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
