from __future__ import annotations

import json
from pathlib import Path

import pytest

from axion.errors import ModelLoadError
from axion.hub.snapshot import INDEX_FILE, check_snapshot, select_files, weight_files


def folder(path: Path, *names: str, index: object = None) -> Path:
    for name in names:
        (path / name).write_bytes(b"")
    if index is not None:
        (path / INDEX_FILE).write_text(json.dumps(index))
    return path


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


def test_index_decides_which_files_hold_the_weights(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        "b.safetensors",
        "a.safetensors",
        "other.safetensors",
        index={"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}},
    )
    assert names(weight_files(path)) == ["a.safetensors", "b.safetensors"]


def test_a_model_in_one_file_has_replaced_what_an_index_names(tmp_path: Path) -> None:
    left = ("model-00001-of-00001.safetensors", INDEX_FILE)
    index = {"weight_map": {"x": left[0], "y": "model-00002-of-00002.safetensors"}}
    path = folder(tmp_path, "model.safetensors", left[0], index=index)
    assert names(weight_files(path)) == ["model.safetensors"]
    assert select_files(["model.safetensors", *left]) == ["model.safetensors", INDEX_FILE]


def test_an_index_may_name_more_beside_a_model_in_one_file(tmp_path: Path) -> None:
    both = ["model.safetensors", "model_extra_tensors.safetensors"]
    index = {"weight_map": {"x": both[0], "y": both[1]}}
    path = folder(tmp_path, *both, "model.fp16.safetensors", index=index)
    assert names(weight_files(path)) == both
    chosen = select_files([*both, "model.fp16.safetensors", INDEX_FILE])
    assert chosen == sorted([*both, INDEX_FILE])


def test_shards_of_other_names_may_be_in_the_index() -> None:
    shards = ["model-00001-of-00001.safetensors", "mtp-00001-of-00001.safetensors"]
    assert select_files([*shards, "model.fp16-00001-of-00001.safetensors"]) == shards


def test_without_an_index_duplicates_of_the_weights_are_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path, "model.safetensors", "model.fp16.safetensors")
    assert names(weight_files(path)) == ["model.safetensors"]


def test_consolidated_weights_count_where_they_are_the_only_ones(tmp_path: Path) -> None:
    assert names(weight_files(folder(tmp_path, "consolidated.safetensors"))) == [
        "consolidated.safetensors"
    ]
    assert names(weight_files(folder(tmp_path, "weights.safetensors"))) == ["weights.safetensors"]


def test_missing_shards_are_counted_and_named(tmp_path: Path) -> None:
    path = folder(
        tmp_path,
        "a.safetensors",
        index={"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}},
    )
    with pytest.raises(ModelLoadError, match=r"1 of 2 weight files are missing, b\.safetensors"):
        weight_files(path)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"x": "../../secret.safetensors"}},
        {"weight_map": {"x": "/etc/passwd"}},
        {"weight_map": {"x": "sub/a.safetensors"}},
        {"weight_map": {"x": "a\x00.safetensors"}},
        {"weight_map": {"x": 7}},
        {"weight_map": {}},
        {"weight_map": ["a.safetensors"]},
        {},
        [],
    ],
)
def test_hostile_index_is_refused(tmp_path: Path, index: object) -> None:
    with pytest.raises(ModelLoadError, match=INDEX_FILE.replace(".", r"\.")):
        weight_files(folder(tmp_path, "a.safetensors", index=index))


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (["pytorch_model.bin", "config.json"], "pickle weights only.*refused"),
        (["model.Q4_K_M.gguf"], "GGUF weights only"),
        (["config.json"], "no safetensors weights"),
        (["model.safetensors"], r"no config\.json"),
    ],
)
def test_folder_without_what_serving_needs_says_what_is_missing(
    tmp_path: Path, present: list[str], said: str
) -> None:
    with pytest.raises(ModelLoadError, match=said):
        check_snapshot(folder(tmp_path, *present))


def test_selection_takes_configs_tokenizer_templates_and_one_copy_of_the_weights() -> None:
    assert select_files(
        [
            "config.json",
            "generation_config.json",
            "tokenizer.model",
            "tekken.json",
            "qwen.tiktoken",
            "merges.txt",
            "chat_template.jinja",
            "chat_templates/rag.jinja",
            "additional_chat_templates/tool_use.jinja",
            INDEX_FILE,
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model_extra_tensors.safetensors",
            "model.fp16-00001-of-00001.safetensors",
            "consolidated.safetensors",
            "consolidated-00001-of-00001.safetensors",
            "original/consolidated.00.pth",
            "original/params.json",
            "onnx/model.safetensors",
            "pytorch_model.bin",
            "model.gguf",
            "modeling_custom.py",
            "README.md",
            "1_Pooling/config.json",
            "other/config.json",
        ]
    ) == [
        "1_Pooling/config.json",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "chat_templates/rag.jinja",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX_FILE,
        "model_extra_tensors.safetensors",
        "qwen.tiktoken",
        "tekken.json",
        "tokenizer.model",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/etc/evil.json",
        "a/../../evil.json",
        "a\\evil.json",
        "a\nb.json",
        "a//b",
        "",
    ],
)
def test_repository_with_an_unsafe_file_name_is_refused_whole(name: str) -> None:
    with pytest.raises(ModelLoadError, match="unsafe file name"):
        select_files(["config.json", "model.safetensors", name])
