"""`pytorch_model.bin` is loaded only where it is allowed, and of it tensors only."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from axion.engine.loader import load_model
from axion.errors import ModelLoadError
from axion.models.base import CausalLM
from tests.parity.checkpoints import save_tiny

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


def load(path: Path, *, allow_pickle: bool = True) -> CausalLM:
    return load_model(path, device=CPU, dtype="float32", allow_pickle=allow_pickle)


def save(folder: Path, *, parts: int = 1, **options: Any) -> None:
    """The folder's weights in pickle files, in place of its safetensors."""
    tensors = list(load_file(folder / "model.safetensors").items())
    weight_map = {}
    for part in range(parts):
        name = f"pytorch_model-{part + 1:05}-of-{parts:05}.bin"
        name = name if parts > 1 else "pytorch_model.bin"
        torch.save(dict(tensors[part::parts]), folder / name, **options)
        weight_map |= dict.fromkeys(dict(tensors[part::parts]), name)
    if parts > 1:
        index = {"weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "options", [{}, {"parts": 3}, {"_use_new_zipfile_serialization": False}], ids=str
)
def test_weights_are_those_of_safetensors(folder: Path, options: dict[str, Any]) -> None:
    expected = dict(load(folder).named_parameters())
    save(folder, **options)
    found = dict(load(folder).named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_parameters_are_taken_as_the_tensors_that_they_are(folder: Path) -> None:
    save(folder)
    file = folder / "pytorch_model.bin"
    torch.save({name: torch.nn.Parameter(t) for name, t in torch.load(file).items()}, file)
    assert not any(parameter.requires_grad for parameter in load(folder).parameters())


def test_without_leave_it_is_refused(folder: Path) -> None:
    save(folder)
    with pytest.raises(ModelLoadError, match="ALLOW_PICKLE"):
        load(folder, allow_pickle=False)


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch attacked",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_it_is_executed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(folder)
    save(folder)
    content = {"model.embed_tokens.weight": Attack()}
    if zipped:
        torch.save(content, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(ModelLoadError, match=r"holds more than tensors|is damaged"):
        load(folder)
    assert not (folder / "attacked").exists()


@pytest.mark.parametrize("content", [[1], {"x": 1}, {1: torch.ones(1)}], ids=str)
def test_what_is_not_tensors_by_name_is_refused(folder: Path, content: Any) -> None:
    save(folder)
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin holds something else"):
        load(folder)


@pytest.mark.parametrize("size", [0, 100, 10_000])
def test_a_file_cut_off_is_refused(folder: Path, size: int) -> None:
    save(folder)
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelLoadError, match=r"^pytorch_model\.bin is damaged") as caught:
        load(folder)
    assert "\n" not in caught.value.message
    assert str(folder) not in caught.value.message


def test_a_missing_part_is_named(folder: Path) -> None:
    save(folder, parts=3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(
        ModelLoadError, match=r"1 of 3 weight files are missing, pytorch_model-00002"
    ):
        load(folder)
