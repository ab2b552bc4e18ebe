"""What sentence-transformers wrote beside a model is honoured, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from axion.errors import ModelLoadError
from axion.pooling.sentence import pooling_mode, transformer_config
from tests.embedding_models import write_modules


def write_pooling(folder: Path, config: str) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(config)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}, "mean"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 8}, "lasttoken"),
    ],
)
def test_pooling_is_what_sentence_transformers_wrote(tmp_path: Path, config: dict, mode: str):
    write_pooling(tmp_path, json.dumps(config))
    assert pooling_mode(tmp_path) == mode
    write_modules(tmp_path, "Transformer", "Pooling")
    assert pooling_mode(tmp_path) == mode


def test_a_folder_need_not_say(tmp_path: Path):
    assert pooling_mode(tmp_path) is None
    assert transformer_config(tmp_path).max_seq_length is None


@pytest.mark.parametrize(
    "config",
    [
        '{"pooling_mode_max_tokens": true}',
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}',
        '{"pooling_mode": "weightedmean"}',
        '{"pooling_mode": ["mean", "cls"]}',
        "{}",
        "[",
    ],
)
def test_pooling_that_is_not_supported_is_refused(tmp_path: Path, config: str):
    write_pooling(tmp_path, config)
    with pytest.raises(ModelLoadError, match=r"1_Pooling/config\.json") as error:
        pooling_mode(tmp_path)
    assert str(tmp_path) not in error.value.message


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        (["Transformer", "Pooling", "Dense", "Normalize"], "Dense"),
        (["Transformer", "Normalize"], "Pooling"),
        (["StaticEmbedding"], "StaticEmbedding"),
        ([], "Transformer"),
    ],
)
def test_modules_that_are_not_supported_are_refused(tmp_path: Path, kinds: list, named: str):
    write_pooling(tmp_path, '{"pooling_mode": "mean"}')
    write_modules(tmp_path, *kinds)
    with pytest.raises(ModelLoadError, match=named):
        pooling_mode(tmp_path)


def test_pooling_that_modules_name_must_be_there(tmp_path: Path):
    write_modules(tmp_path, "Transformer", "Pooling")
    with pytest.raises(ModelLoadError, match=r"1_Pooling/config\.json"):
        pooling_mode(tmp_path)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b"])
def test_a_module_outside_the_folder_is_refused(tmp_path: Path, path: str):
    write_modules(tmp_path, "Transformer", "Pooling")
    file = tmp_path / "modules.json"
    file.write_text(file.read_text().replace("1_Pooling", path))
    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        pooling_mode(tmp_path)


def test_limits_are_read_by_any_family_s_name(tmp_path: Path):
    path = tmp_path / "sentence_xlm-roberta_config.json"
    path.write_text('{"max_seq_length": 128, "do_lower_case": true, "more": 1}')
    config = transformer_config(tmp_path)
    assert (config.max_seq_length, config.do_lower_case) == (128, True)
    path.write_text('{"max_seq_length": "long"}')
    with pytest.raises(ModelLoadError, match="xlm-roberta"):
        transformer_config(tmp_path)
