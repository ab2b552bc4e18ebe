"""Loading is strict both ways, refuses what is damaged or hostile, and says so in a sentence."""

from __future__ import annotations

import json
import logging
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axion.engine import loader
from axion.engine.loader import load_embedding_model, load_model
from axion.errors import ModelLoadError
from axion.layers import onednn
from axion.models.base import CausalLM
from tests.parity.checkpoints import build_tiny, save_tiny

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return save_tiny("llama-tied", tmp_path / "tied")


def load(path: Path) -> CausalLM:
    return load_model(path, device=CPU, dtype="float32")


def refused(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(path)
    assert str(path) not in caught.value.message
    return caught.value.message


def plain(weight: Tensor) -> Tensor:
    return weight.to_dense() if weight.layout == torch._mkldnn else weight


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS)


def change_config(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def write_safetensors(path: Path, header: object, data: bytes, size: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if size is None else size) + raw + data)


def shard(path: Path) -> dict[str, str]:
    """Split the weights in two files with an index; returns the weight map."""
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    weight_map = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in names}, path / name)
        weight_map |= dict.fromkeys(names, name)
    write_index(path, weight_map)
    return weight_map


def write_index(path: Path, weight_map: dict[str, str]) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def test_every_parameter_is_where_transformers_has_it(folder: Path) -> None:
    model, expected = load(folder), build_tiny("llama").state_dict()
    q, k, v = (expected[Q_PROJ.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj"))
    attention = model.model.layers[0].self_attn
    torch.testing.assert_close(attention.qkv_proj.weight, torch.cat([q, k, v]), rtol=0, atol=0)
    torch.testing.assert_close(model.lm_head.weight, expected["lm_head.weight"], rtol=0, atol=0)
    assert not any(p.requires_grad or p.is_meta for p in model.parameters())
    assert not model.training


@pytest.mark.parametrize("projection", ["self_attn.qkv_proj", "mlp.gate_up_proj"])
def test_projections_stored_as_one_must_be_there_and_whole(projection: str, tmp_path: Path) -> None:
    name = f"model.layers.0.{projection}.weight"
    folder = save_tiny("phi3", tmp_path)
    load(folder)
    change_weights(folder, lambda t: t.update({name: t[name][1:].clone()}))
    with pytest.raises(ModelLoadError, match=f"{name} has shape"):
        load(folder)
    change_weights(folder, lambda t: t.pop(name))
    with pytest.raises(ModelLoadError, match=f"{name} is missing"):
        load(folder)


@pytest.mark.parametrize("case", ["phi", "gpt-neox", "falcon", "gptj", "opt-projected"])
def test_a_decoder_saved_without_its_head_is_an_embedding_model(case: str, tmp_path: Path) -> None:
    for part in ("whole", "headless"):
        model = build_tiny(case)
        (model if part == "whole" else model.base_model).save_pretrained(tmp_path / part)
    whole, headless = (
        load_embedding_model(tmp_path / part, device=CPU).state_dict()
        for part in ("whole", "headless")
    )
    assert whole.keys() == headless.keys()
    assert all(torch.equal(plain(headless[name]), plain(whole[name])) for name in whole)


def test_progress_ends_at_the_total(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    model = load_model(
        folder, device=CPU, dtype="bfloat16", on_progress=lambda *call: calls.append(call)
    )
    done = [bytes_done for bytes_done, _ in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1] == sum(p.nbytes for p in model.parameters())


def test_shards_are_read_by_their_index(folder: Path) -> None:
    whole = load(folder).state_dict()
    shard(folder)
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_a_tied_head_is_the_embedding_itself(tied: Path) -> None:
    model = load(tied)
    assert "lm_head.weight" not in load_file(tied / WEIGHTS)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_head_that_is_stored_again_is_left_out(tied: Path) -> None:
    change_weights(
        tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    model = load(tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_stored_head_that_differs_is_used_as_transformers_does(
    tied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_weights(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with caplog.at_level(logging.WARNING, "axion.engine"):
        model = load(tied)
    torch.testing.assert_close(model.lm_head.weight, model.model.embed_tokens.weight + 1)
    assert "not tied" in caplog.text


def test_a_name_that_no_tensor_has_is_refused_before_it_is_taken_apart(tied: Path) -> None:
    change_weights(tied, lambda t: t.update({"a." * 1000: torch.zeros(1)}))
    with pytest.raises(ModelLoadError, match="whose name has 2000 characters"):
        load(tied)


def test_a_stored_head_of_another_number_format_is_not_compared(tied: Path) -> None:
    def add_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].to(torch.float8_e4m3fn)

    change_weights(tied, add_head)
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight is stored as F8_E4M3"):
        load(tied)


def test_frequencies_in_old_checkpoints_are_left_out(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(folder, lambda t: t.update({name: torch.ones(8)}))
    load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_weights(folder, lambda t: t.pop(Q_PROJ))
    assert f"{Q_PROJ} is missing" in refused(folder)


def test_an_unused_tensor_is_named(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    change_weights(folder, lambda t: t.update({name: torch.ones(64)}))
    assert name in refused(folder)


def test_a_wrong_shape_is_named_with_both(folder: Path) -> None:
    change_weights(folder, lambda t: t.update({Q_PROJ: torch.ones(48, 64)}))
    assert f"{Q_PROJ} has shape [48, 64], expected [64, 64]" in refused(folder)


def test_a_number_format_that_is_no_weight_is_named(folder: Path) -> None:
    change_weights(folder, lambda t: t.update({Q_PROJ: t[Q_PROJ].to(torch.int8)}))
    assert f"{Q_PROJ} is stored as I8" in refused(folder)


def test_many_faults_are_counted_not_listed(folder: Path) -> None:
    change_weights(folder, lambda t: [t.pop(name) for name in list(t)[:9]])
    assert "and 4 more" in refused(folder)


def test_nothing_is_allocated_before_the_shapes_fit(folder: Path) -> None:
    change_config(folder, hidden_size=2**24, vocab_size=2**24, intermediate_size=2**24)
    assert "expected [16777216, 16777216]" in refused(folder)


def test_weights_larger_than_the_memory_are_refused_before_it_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = sum(parameter.nbytes for parameter in load(folder).parameters())
    monkeypatch.setattr(loader, "free_memory", lambda device: num_bytes)
    load(folder)
    monkeypatch.setattr(loader, "free_memory", lambda device: num_bytes - 1)
    assert "as float32" in refused(folder)


def test_a_layer_that_is_packed_is_counted_twice_while_it_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    config = load(folder).config
    tensors = loader.open_checkpoint(folder).tensors.values()
    num_values = sum(prod(tensor.shape) for tensor in tensors)
    need = 4 * (num_values + config.vocab_size * config.hidden_size)  # the head is last
    monkeypatch.setattr(loader, "free_memory", lambda device: need)
    load(folder)
    monkeypatch.setattr(loader, "free_memory", lambda device: need - 1)
    assert "as float32" in refused(folder)


def test_sizes_that_overflow_are_refused(folder: Path) -> None:
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    change_config(folder, **dict.fromkeys(sizes, 2**24))
    assert "config.json" in refused(folder)


def test_a_tensor_in_two_shards_is_named(folder: Path) -> None:
    name, file = next(iter(shard(folder).items()))
    other = folder / ("model-00002-of-00002.safetensors" if "00001-of" in file else file)
    save_file(load_file(other) | {name: torch.ones(1)}, other)
    assert f"{name} is stored twice" in refused(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused(folder)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "..", "model.bin", ""])
def test_an_index_that_points_elsewhere_is_refused(folder: Path, name: str) -> None:
    weight_map = shard(folder)
    save_file({Q_PROJ: torch.ones(64, 64)}, folder.parent / "x.safetensors")
    write_index(folder, weight_map | {Q_PROJ: name})
    assert "model.safetensors.index.json" in refused(folder)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "size"),
    [
        ({Q_PROJ: ENTRY}, b"\0" * 4, None),
        ({Q_PROJ: ENTRY}, b"\0" * 9, None),
        ({Q_PROJ: ENTRY | {"data_offsets": [8, 0]}}, b"\0" * 8, None),
        ({Q_PROJ: ENTRY | {"data_offsets": [0, 2**63]}}, b"\0" * 8, None),
        ({Q_PROJ: ENTRY | {"shape": [-2]}}, b"\0" * 8, None),
        ({Q_PROJ: ENTRY | {"shape": [2**63]}}, b"\0" * 8, None),
        ({Q_PROJ: ENTRY | {"shape": [2**62, 4]}}, b"\0" * 8, None),
        ({Q_PROJ: ENTRY | {"dtype": "Q4"}}, b"\0" * 8, None),
        ({Q_PROJ: ENTRY, "other": ENTRY}, b"\0" * 8, None),
        ({Q_PROJ: 3}, b"", None),
        ([], b"", None),
        (b"[" * 100_000, b"", None),
        (b'{"\xff": 1}', b"", None),
        (b"{}", b"", 2**63),
        (b"{}", b"", 10**6),
        (b"", b"", None),
    ],
)
def test_a_damaged_file_is_refused(
    folder: Path, header: object, data: bytes, size: int | None
) -> None:
    write_safetensors(folder / WEIGHTS, header, data, size)
    assert "model.safetensors is damaged" in refused(folder)


def test_a_truncated_file_is_refused_wherever_it_ends(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        assert "model.safetensors is damaged" in refused(folder)


def test_one_name_twice_in_a_header_is_refused(folder: Path) -> None:
    entry = json.dumps(ENTRY)
    header = f'{{"{Q_PROJ}": {entry}, "{Q_PROJ}": {entry}}}'.encode()
    write_safetensors(folder / WEIGHTS, header, b"\0" * 8)
    assert f"two tensors named {Q_PROJ}" in refused(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_not_run(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert "pickle" in refused(folder)
    assert not Path("executed").exists()


def test_a_repository_s_own_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    (folder / "modeling.py").write_text(f"open({str(executed)!r}, 'w')\n")
    auto_map = {"AutoModelForCausalLM": "modeling.Evil", "AutoConfig": "modeling.EvilConfig"}
    change_config(folder, auto_map=auto_map)
    load(folder)  # a known architecture: Axion's own class
    change_config(folder, architectures=["Evil"])
    assert "auto_map" in refused(folder)
    assert not executed.exists()


def test_a_named_dtype_is_taken_as_it_is(folder: Path) -> None:
    assert load_model(folder, device=CPU, dtype="bfloat16").dtype == torch.bfloat16


def test_loading_holds_one_copy_of_the_model_and_of_a_layer(tmp_path: Path) -> None:
    size = 256 * 2**20  # half of it the head, which is packed
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": size // 4 // 512 // 2,
        "hidden_size": 512,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    # A process of its own, so that what other tests left behind does not count.
    done = subprocess.run(
        [sys.executable, "-c", _PEAK_MEMORY, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    between, peak = map(int, done.stdout.split())
    assert between < 1.05 * size
    assert peak < 1.55 * size  # the head twice


_PEAK_MEMORY = """
import json, pathlib, sys
import torch
from safetensors.torch import save_file
from axion.engine.expected_tensors import expected_tensors
from axion.engine.loader import load_model
from axion.layers import onednn
from axion.models.config import DecoderConfig
from axion.models.llama import LlamaForCausalLM

def anonymous():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

path = pathlib.Path(sys.argv[1])
config = DecoderConfig.from_dict(json.loads((path / "config.json").read_text()))
with torch.device("meta"):
    model = LlamaForCausalLM(config)
tensors = {name: torch.zeros(shape) for name, shape in expected_tensors(model).items()}
save_file(tensors, path / "model.safetensors")
del tensors
start, between, during = anonymous(), [0], [0]
pack = onednn.pack
def watched(weight):
    packed = pack(weight)
    during.append(anonymous() - start)
    return packed
onednn.pack = watched
load_model(
    path,
    device=torch.device("cpu"),
    dtype="float32",
    on_progress=lambda done, total: between.append(anonymous() - start),
)
print(max(between), max(during + between))
"""
