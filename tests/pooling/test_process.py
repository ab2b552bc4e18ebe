"""Which library serves a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from axion.errors import AxionError, ModelLoadError, ModelNotFoundError
from axion.pooling import embedder
from axion.pooling.embedder import Embedder
from axion.pooling.native import NativeEmbedder
from axion.pooling.process import _load_failed, _load_model
from axion.types import PoolingConfig, PoolingKind
from tests.embedding_models import save_qwen3


def config(model: str | Path) -> PoolingConfig:
    return PoolingConfig(
        kind=PoolingKind.EMBEDDING,
        name="m",
        model=str(model),
        is_folder=isinstance(model, Path),
        num_threads=1,
    )


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    return save_qwen3(tmp_path / "qwen3")


def test_a_folder_with_onnx_is_fastembed_s_whatever_else_it_holds(
    sentence_model: Path, qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # fastembed takes a name once in a process.
    monkeypatch.setattr(embedder, "LOCAL", "test/process")
    folder = shutil.copytree(sentence_model, tmp_path / "both")
    shutil.copy(qwen3 / "model.safetensors", folder)
    assert isinstance(_load_model(config(folder)), Embedder)


def test_a_folder_with_safetensors_alone_is_native(qwen3: Path):
    assert isinstance(_load_model(config(qwen3)), NativeEmbedder)


def test_a_folder_with_neither_says_what_it_lacks(tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelLoadError, match=r"model\.onnx.*safetensors"):
        _load_model(config(tmp_path))


class TestHub:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        return tmp_path

    def refused(self, model: str) -> AxionError:
        with pytest.raises(AxionError) as error:
            _load_model(config(model))
        return error.value

    def test_what_fastembed_does_not_list_is_native(self, cache: Path):
        repository = cache / "models--somebody--tiny-embedding"
        (repository / "snapshots").mkdir(parents=True)
        save_qwen3(repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        assert isinstance(_load_model(config("somebody/tiny-embedding")), NativeEmbedder)

    def test_what_is_not_there_says_the_way_out(self, cache: Path):
        error = self.refused("somebody/else")
        assert isinstance(error, ModelLoadError)
        assert "name its folder" in error.message
        assert str(cache) not in error.message

    def test_what_is_no_name_is_not_found(self):
        error = self.refused("tiny")
        assert isinstance(error, ModelNotFoundError)
        assert _load_failed(config("tiny"), error).not_found
