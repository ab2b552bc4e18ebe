"""The header of GGUF files: metadata, and where each tensor lies. Nothing in it is trusted.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package's reader
takes every number in a file as it is, and seconds for a header that holds a vocabulary.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from axion.errors import ModelLoadError

# Above any real file: the largest vocabularies take 20 MB and, with their merges, 1.5 million
# values. A Python object of such a value takes some 100 bytes.
MAX_HEADER_BYTES = 2**28
MAX_VALUES = 2**22
MAX_TENSORS = 2**17
MAX_ELEMENTS = 2**48
MAX_FILES = 1000
_MAX_ALIGNMENT = 2**16
_MAX_DEPTH = 4
_VERSIONS = (2, 3)


class TensorType(NamedTuple):
    """How numbers are stored: in blocks of `block_size`, each of `num_bytes`."""

    name: str
    block_size: int
    num_bytes: int


# Those that Axion loads, by their number in the file.
TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
}
FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})

# Of each type of a value its form; strings and arrays are apart.
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class StoredTensor(msgspec.Struct, frozen=True):
    """A tensor in a GGUF file.

    Attributes:
        shape: rows first, as torch has it; the file has it the other way round.
        type: None where Axion does not load it.
        type_number: of the type, in the file.
        offset: from the beginning of `file`, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType | None
    type_number: int
    file: Path
    offset: int

    @property
    def num_elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """0 where the type is unknown."""
        if self.type is None:
            return 0
        return self.num_elements // self.type.block_size * self.type.num_bytes

    @property
    def type_name(self) -> str:
        return self.type.name if self.type else _name_of(self.type_number)


class GGUF(msgspec.Struct, frozen=True):
    """What the header of a GGUF file says, or those of a file that is split.

    Attributes:
        metadata: by key; an array is a list.
    """

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def quantization(self) -> str:
        """The type that most of the weights have, in bytes, or one that Axion does not load."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.type is None:
                return tensor.type_name
            sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.nbytes
        return max(sizes, key=lambda name: sizes[name], default="F32")


def is_gguf(path: Path) -> bool:
    """Whether the path of a model names a GGUF file and not a folder."""
    return path.suffix == ".gguf"


def read_gguf(path: Path) -> GGUF:
    """Read and check the header of the file `path`, and of those that it is split into.

    Raises:
        ModelLoadError: a file is missing, damaged, or no GGUF file that names its architecture.
    """
    files = shard_paths(path)
    first = _read(files[0])
    metadata = first.metadata
    if not isinstance(metadata.get("general.architecture"), str):
        raise ModelLoadError(f"{path.name} is no GGUF file that names its architecture.")
    count = metadata.get("split.count") or 1  # 0: merged again, by gguf-split
    if count != len(files):
        raise ModelLoadError(
            f"{path.name} is one of {count!r:.80} files by its header and one of {len(files)} by "
            "its name. Give the files the names that they had."
        )
    tensors = dict(first.tensors)
    for number, file in enumerate(files[1:], start=1):
        shard = _read(file)
        if shard.metadata.get("split.no") != number:
            raise ModelLoadError(
                f"{file.name} is not part {number + 1} of the model it belongs to."
            )
        if twice := tensors.keys() & shard.tensors.keys():
            raise ModelLoadError(f"{file.name}: {_shown(min(twice))} is stored in two files.")
        tensors |= shard.tensors
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelLoadError(
            f"{path.name} announces {expected!r:.80} tensors, and has {len(tensors)}."
        )
    return GGUF(tuple(files), metadata, tensors)


def shard_paths(path: Path) -> list[Path]:
    """The files of a model, of which `path` is the only one or one of several.

    Raises:
        ModelLoadError: one is not there.
    """
    names = shard_names(path.name)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing and len(names) > 1:
        raise ModelLoadError(
            f"{len(missing)} of the model's {len(names)} GGUF files are missing, {missing[0]} "
            "among them. Download the model again."
        )
    return [path.parent / name for name in names]


def shard_names(name: str) -> list[str]:
    """Names of the files that a model is split into, of which `name` is one; else only `name`."""
    match = _SHARD.fullmatch(name)
    if match is None or not 1 < int(match[3]) <= MAX_FILES:
        return [name]
    count = int(match[3])
    return [f"{match[1]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _read(path: Path) -> GGUF:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                what = "is empty" if size == 0 else "is no GGUF file: it does not begin with GGUF"
                raise ModelLoadError(f"{path.name} {what}. Download the model again.")
            with mmap.mmap(
                file.fileno(), min(size, MAX_HEADER_BYTES), access=mmap.ACCESS_READ
            ) as m:
                return _Header(path, m, size).read()
    except OSError as error:
        raise ModelLoadError(f"{path.name} cannot be read: {error.strerror}.") from None
    except struct.error:
        reason = (
            f"its header is larger than {MAX_HEADER_BYTES // 2**20} MiB"
            if size > MAX_HEADER_BYTES
            else "it ends in its header"
        )
    except UnicodeDecodeError:
        reason = "a text in its header is not UTF-8"
    except _DamagedError as error:
        reason = str(error)
    raise ModelLoadError(f"{path.name} is damaged ({reason}). Download the model again.")


class _DamagedError(Exception):
    pass


class _Header:
    """Reads one header from its beginning to its end.

    Raises, from every method: `struct.error` at the end of the data, UnicodeDecodeError,
    _DamagedError.
    """

    def __init__(self, path: Path, data: mmap.mmap, file_size: int) -> None:
        self._path = path
        self._data = data
        self._file_size = file_size
        self._at = 4
        self._num_values = 0

    def read(self) -> GGUF:
        version = self._number(_U32)
        if version not in _VERSIONS:
            if version in (known << 24 for known in _VERSIONS):
                raise ModelLoadError(
                    f"{self._path.name} is a GGUF file for big-endian machines, which Axion does "
                    "not load. Use the ordinary version of the model."
                )
            raise ModelLoadError(
                f"{self._path.name} is a GGUF file of version {version}, and Axion loads "
                f"{' and '.join(map(str, _VERSIONS))}. Convert the model again."
            )
        num_tensors, num_entries = self._number(_U64), self._number(_U64)
        if num_tensors > MAX_TENSORS:
            raise _DamagedError(f"it announces {num_tensors} tensors")
        metadata = self._metadata(num_entries)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment % 8:
            raise _DamagedError(f"its alignment is {str(alignment)[:80]}")
        tensors = [self._tensor() for _ in range(num_tensors)]
        start = -(-self._at // alignment) * alignment
        placed: dict[str, StoredTensor] = {}
        for tensor in tensors:
            if tensor.name in placed:
                raise _DamagedError(f"it holds two tensors named {_shown(tensor.name)}")
            if tensor.offset % alignment:
                raise _DamagedError(f"{_shown(tensor.name)} is not aligned to {alignment} bytes")
            placed[tensor.name] = msgspec.structs.replace(tensor, offset=start + tensor.offset)
        self._check_places(placed.values())
        return GGUF((self._path,), metadata, placed)

    def _metadata(self, num_entries: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string()
            if key in metadata:
                raise _DamagedError(f"it has two entries {_shown(key)}")
            metadata[key] = self._value(self._number(_U32))
        return metadata

    def _value(self, kind: int, depth: int = 0) -> Any:
        self._count(1)
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._number(_U32), self._number(_U64)
            self._count(count)
            if inner == _STRING:
                return self._strings(count)
            if inner == _ARRAY and depth < _MAX_DEPTH:
                return [self._value(_ARRAY, depth + 1) for _ in range(count)]
            return list(self._numbers(self._scalar(inner), count))
        return self._number(self._scalar(kind))

    def _count(self, num_values: int) -> None:
        self._num_values += num_values
        if self._num_values > MAX_VALUES:
            raise _DamagedError(f"its metadata has more than {MAX_VALUES} values")

    @staticmethod
    def _scalar(kind: int) -> struct.Struct:
        if kind not in _SCALARS:
            raise _DamagedError(f"its metadata has a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _number(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return value

    def _numbers(self, form: struct.Struct, count: int) -> tuple[Any, ...]:
        many = struct.Struct(f"<{count}{form.format[1:]}")
        values = many.unpack_from(self._data, self._at)
        self._at += many.size
        return values

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        data, at, unpack, strings = self._data, self._at, _U64.unpack_from, []
        size = len(data)
        for _ in range(count):
            start = at + 8
            at = start + unpack(data, at)[0]
            if at > size:
                raise struct.error
            strings.append(data[start:at].decode())
        self._at = at
        return strings

    def _tensor(self) -> StoredTensor:
        """With its offset from the end of the header, as the file has it."""
        name = self._string()
        num_dims = self._number(_U32)
        if not 0 < num_dims <= 4:
            raise _DamagedError(f"{_shown(name)} has {num_dims} dimensions")
        shape = self._numbers(_U64, num_dims)[::-1]
        number, offset = self._number(_U32), self._number(_U64)
        tensor = StoredTensor(name, shape, TENSOR_TYPES.get(number), number, self._path, offset)
        if not 0 < tensor.num_elements <= MAX_ELEMENTS:
            raise _DamagedError(f"{_shown(name)} has the shape {list(shape)}")
        if tensor.type is not None and shape[-1] % tensor.type.block_size:
            raise _DamagedError(
                f"{_shown(name)} has rows of {shape[-1]} numbers, which {tensor.type.name} cannot"
            )
        return tensor

    def _check_places(self, tensors: Iterable[StoredTensor]) -> None:
        places = sorted(tensors, key=lambda tensor: tensor.offset)
        for before, after in pairwise(places):
            if before.offset + max(before.nbytes, 1) > after.offset:
                raise _DamagedError(f"{_shown(before.name)} and {_shown(after.name)} overlap")
        for tensor in places:
            if tensor.offset + tensor.nbytes > self._file_size:
                raise _DamagedError(f"{_shown(tensor.name)} lies beyond its end")


def _shown(name: str) -> str:
    return repr(name[:100])


def _name_of(type_number: int) -> str:
    # It takes a while to import, and only messages need it.
    from gguf.constants import GGMLQuantizationType

    try:
        return GGMLQuantizationType(type_number).name
    except ValueError:
        return f"type {type_number}"
