"""Headers of GGUF files, whole and damaged."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axion.errors import ModelLoadError
from axion.hub.gguf import GGUF, MAX_VALUES, read_gguf, shard_names


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


ARCHITECTURE = entry("general.architecture", 8, string("llama"))
HEADER = struct.Struct("<4sIQQ")


def file_of(
    *entries: bytes, tensors: tuple[bytes, ...] = (), data: int = 4096, version: int = 3
) -> bytes:
    header = HEADER.pack(b"GGUF", version, len(tensors), len(entries) + 1)
    header += ARCHITECTURE + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


def read(folder: Path, content: bytes) -> GGUF:
    (folder / "m.gguf").write_bytes(content)
    return read_gguf(folder / "m.gguf")


def test_what_ggufs_own_writer_writes_is_read(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    values: dict[str, Any] = {
        "a.u8": (writer.add_uint8, 200),
        "a.i8": (writer.add_int8, -3),
        "a.u16": (writer.add_uint16, 60_000),
        "a.i32": (writer.add_int32, -70_000),
        "a.u64": (writer.add_uint64, 2**63),
        "a.f32": (writer.add_float32, 0.5),
        "a.f64": (writer.add_float64, 0.1),
        "a.bool": (writer.add_bool, True),
        "a.text": (writer.add_string, "Grüße"),
        "a.texts": (writer.add_array, ["x", "", "你好"]),
        "a.numbers": (writer.add_array, [1, -2, 3]),
        "a.lists": (writer.add_array, [[1, 2], [3]]),
    }
    for key, (add, value) in values.items():
        add(key, value)
    numbers = np.arange(6 * 64, dtype=np.float32).reshape(6, 64)
    for name, kind in (("w", "Q8_0"), ("x", "F16"), ("y", "Q4_0")):
        raw = gguf.quants.quantize(numbers, kind := gguf.GGMLQuantizationType[kind])
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    found = read_gguf(tmp_path / "m.gguf")
    assert {key: found.metadata[key] for key in values} == {
        key: value for key, (_, value) in values.items()
    }
    assert found.architecture == "llama"
    assert found.quantization == "F16"  # which has the most bytes
    for theirs in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        ours = found.tensors[theirs.name]
        assert (ours.shape, ours.offset, ours.nbytes) == (
            (6, 64),
            theirs.data_offset,
            theirs.n_bytes,
        )
        assert ours.type_name == theirs.tensor_type.name


F32 = {"tensors": (tensor("w", (8,)),)}
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"GGUF", "ends in its header"),
    "magic": (b"GGML" + bytes(100), "is no GGUF file"),
    "other": (b"PK\x03\x04" + bytes(100), "is no GGUF file"),
    "no architecture": (HEADER.pack(b"GGUF", 3, 0, 0), "names its architecture"),
    "version 1": (file_of(version=1), "version 1, and Axion loads 2 and 3"),
    "big-endian": (file_of(version=3 << 24), "big-endian"),
    "many tensors": (HEADER.pack(b"GGUF", 3, 2**60, 0), "announces 1152921504606846976 tensors"),
    "many entries": (HEADER.pack(b"GGUF", 3, 0, 2**60) + ARCHITECTURE, "ends in its header"),
    "long string": (file_of(entry("a", 8, struct.pack("<Q", 2**63))), "ends in its header"),
    "long list": (file_of(entry("a", 9, struct.pack("<IQ", 0, 2**62))), "has more than"),
    "many empty texts": (
        file_of(entry("a", 9, struct.pack("<IQ", 8, MAX_VALUES + 1))),
        "has more than",
    ),
    "deep lists": (
        file_of(entry("a", 9, struct.pack("<IQ", 9, 1) * 50)),
        "unknown type 9",
    ),
    "unknown kind": (file_of(entry("a", 77, b"")), "unknown type 77"),
    "not UTF-8": (file_of(entry("a", 8, string(b"\xff"))), "not UTF-8"),
    "twice": (file_of(entry("a", 7, b"\1"), entry("a", 7, b"\1")), "two entries 'a'"),
    "alignment": (file_of(entry("general.alignment", 4, struct.pack("<I", 0))), "alignment is 0"),
    "alignment text": (file_of(entry("general.alignment", 8, string("x"))), "alignment is x"),
    "no dimensions": (file_of(tensors=(tensor("w", ()),)), "'w' has 0 dimensions"),
    "five dimensions": (file_of(tensors=(tensor("w", (1,) * 5),)), "'w' has 5 dimensions"),
    "empty tensor": (file_of(tensors=(tensor("w", (0, 5)),)), r"'w' has the shape \[5, 0\]"),
    "endless": (file_of(tensors=(tensor("w", (2**40, 2**40)),)), "'w' has the shape"),
    "negative": (file_of(tensors=(tensor("w", (2**64 - 1,)),)), "'w' has the shape"),
    "odd row": (file_of(tensors=(tensor("w", (33,), 8),)), "rows of 33 numbers, which Q8_0"),
    "beyond": (file_of(tensors=(tensor("w", (8,), 0, 2**40),)), "'w' lies beyond its end"),
    "last byte": (file_of(**F32, data=31), "'w' lies beyond its end"),
    "far": (file_of(tensors=(tensor("w", (8,), 0, 2**64 - 32),)), "'w' lies beyond its end"),
    "unaligned": (file_of(tensors=(tensor("w", (8,), 0, 8),)), "not aligned to 32"),
    "overlap": (
        file_of(tensors=(tensor("v", (64,)), tensor("w", (8,), 0, 32))),
        "'v' and 'w' overlap",
    ),
    "one place": (
        file_of(tensors=(tensor("v", (8,), 41), tensor("w", (8,), 41))),
        "'v' and 'w' overlap",
    ),
    "two of a name": (
        file_of(tensors=(tensor("w", (8,)), tensor("w", (8,), 0, 32))),
        "two tensors named 'w'",
    ),
    "split elsewhere": (file_of(entry("split.count", 2, struct.pack("<H", 3))), "one of 3 files"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path, fault: str):
    content, said = DAMAGED[fault]
    begin = time.perf_counter()
    with pytest.raises(ModelLoadError, match=said) as caught:
        read(tmp_path, content)
    assert time.perf_counter() - begin < 2
    assert "m.gguf" in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert len(caught.value.message) < 300


WHOLE = file_of(
    entry("a.list", 9, struct.pack("<IQ", 8, 2) + string("x") + string("yz")),
    entry("a.number", 12, struct.pack("<d", 0.5)),
    tensors=(tensor("v", (32, 2), 8), tensor("w", (8,), 0, 96)),
    data=128,
)


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_a_truncated_file_is_refused(tmp_path: Path, length: int):
    with pytest.raises(ModelLoadError):
        read(tmp_path, WHOLE[:length])


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_whatever_the_bytes_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 8))
        change = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8)))
        content[at : at + len(change)] = change
    folder = tmp_path_factory.getbasetemp()
    begin = time.perf_counter()
    try:
        found = read(folder, bytes(content))
    except ModelLoadError:
        pass  # with a message, as the cases above show
    else:
        for stored in found.tensors.values():
            assert stored.offset + stored.nbytes <= len(content)
    assert time.perf_counter() - begin < 2


def test_a_type_that_nobody_knows_is_left_to_who_loads_it(tmp_path: Path):
    found = read(tmp_path, file_of(tensors=(tensor("w", (256,), 41),)))
    assert found.quantization == "Q1_0"
    assert found.tensors["w"].type is None


def test_a_model_that_was_split_and_merged_again_is_one_file(tmp_path: Path):
    merged = (
        *(
            entry("split.no", 2, struct.pack("<H", 0)),
            entry("split.count", 2, struct.pack("<H", 0)),
        ),
        entry("split.tensors.count", 5, struct.pack("<i", 1)),
    )
    assert read(tmp_path, file_of(*merged, **F32)).tensors.keys() == {"w"}


def test_parts_of_a_split_model_name_each_other():
    assert shard_names("q-00002-of-00003.gguf") == [f"q-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert shard_names("q-00001-of-00001.gguf") == ["q-00001-of-00001.gguf"]
    assert shard_names("q-00001-of-99999.gguf") == ["q-00001-of-99999.gguf"]
