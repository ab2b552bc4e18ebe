"""The metadata of a GGUF file as config.json's fields, as far as architectures are alike.

The keys are llama.cpp's: gguf's `constants.Keys`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

from axion.errors import ModelLoadError
from axion.hub.gguf import GGUF

_MAX_INTEGER = 2**31
_MAX_LAYERS = 2**10
_MAX_FACTORS = 2**12
# Keys that say nothing about how hidden states are computed from token ids.
_HARMLESS = frozenset(
    {
        *("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "pooling_type"),
        *("nextn_predict_layers", "attention.causal", "rope.dimension_count"),
        *("attention.key_length", "attention.value_length"),
        # Of rotations by place and time, which for text are the same.
        "rope.dimension_sections",
    }
)
_DTYPES = {"F32": "float32", "F16": "float16"}


class Architecture:
    """Translates the metadata of one file, here that of a Llama.

    Attributes:
        keys: those of config.json's fields by name, without the architecture's before it.
        constants: fields that the file does not have.
    """

    architecture: ClassVar[str] = ""
    keys: ClassVar[Mapping[str, str]] = {}
    constants: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, gguf: GGUF) -> None:
        self.gguf = gguf
        self._prefix = f"{gguf.architecture}."
        self._read: set[str] = set()

    def name(self) -> str:
        return self.architecture

    def config(self) -> dict[str, Any]:
        if self.get("attention.causal", True) is not True:
            raise ModelLoadError("The model in the GGUF file is an encoder; it writes no text.")
        head_dim = self.head_dim()
        config = {
            "architectures": [self.name()],
            "dtype": self.dtype(),
            "vocab_size": self.shape("token_embd.weight")[0],
            "hidden_size": self.integer("embedding_length"),
            "num_hidden_layers": self.num_layers(),
            "num_attention_heads": self.integer("attention.head_count"),
            "num_key_value_heads": self.num_key_value_heads(),
            "head_dim": head_dim,
            "intermediate_size": self.intermediate_size(),
            "max_position_embeddings": self.integer("context_length"),
            "tie_word_embeddings": not self.has("output.weight"),
            "attention_bias": self.has("blk.0.attn_q.bias") or self.has("blk.0.attn_qkv.bias"),
            "mlp_bias": self.has("blk.0.ffn_up.bias"),
            "rope_parameters": self.rope(head_dim),
        }
        config |= {
            field: self.get(key) for key, field in _KEYS.items() if self.get(key) is not None
        }
        config |= {
            field: self.get(key) for key, field in self.keys.items() if self.get(key) is not None
        }
        config |= dict(self.constants) | self.more(config)
        self._check_read()
        return config

    def more(self, config: dict[str, Any]) -> dict[str, Any]:
        """Fields that are not simply a key's value; over those of `config`."""
        return {}

    def get(self, key: str, default: Any = None) -> Any:
        """A value; of one that is given for each layer, the one that all have."""
        self._read.add(key)
        value = self.gguf.metadata.get(self._prefix + key, default)
        if isinstance(value, list):
            if len(set(map(str, value))) != 1:
                raise ModelLoadError(
                    f"The GGUF file's {self._prefix}{key} differs from layer to layer, which is "
                    "not supported."
                )
            value = value[0]
        return shortest(value) if isinstance(value, float) else value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or not 0 < value < _MAX_INTEGER:
            raise ModelLoadError(
                f"The GGUF file's {self._prefix}{key} must be a positive integer, got "
                f"{str(value)[:80]}."
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ModelLoadError(
                f"The GGUF file's {self._prefix}{key} must be a number, got {str(value)[:80]}."
            )
        return float(value)

    def counts(self, key: str) -> list[int]:
        """A number for each layer; where there is only one, it is that of all."""
        self._read.add(key)
        value = self.gguf.metadata.get(self._prefix + key)
        num_layers = self.num_layers()
        # Layers that guess further tokens are the last.
        values = value[:num_layers] if isinstance(value, list) else [value] * num_layers
        counts = [count for count in values if type(count) is int and 0 <= count < _MAX_INTEGER]
        if len(counts) != num_layers:
            raise ModelLoadError(
                f"The GGUF file's {self._prefix}{key} must be an integer, or one for each of "
                f"{num_layers} layers, got {str(value)[:80]}."
            )
        return counts

    def flags(self, key: str) -> list[bool] | None:
        """One for each layer; None where there is no such list."""
        self._read.add(key)
        values = self.gguf.metadata.get(self._prefix + key)
        return [bool(value) for value in values] if isinstance(values, list) else None

    def numbers(self, key: str) -> list[float] | None:
        """One for each layer, infinities among them; None where there is no such list."""
        self._read.add(key)
        values = self.gguf.metadata.get(self._prefix + key)
        if not isinstance(values, list):
            return None
        numbers = [float(value) for value in values if type(value) in (int, float)]
        if len(numbers) != len(values) or any(map(math.isnan, numbers)):
            raise ModelLoadError(f"The GGUF file's {self._prefix}{key} must be a list of numbers.")
        return numbers

    def has(self, tensor: str) -> bool:
        return tensor in self.gguf.tensors

    def shape(self, tensor: str) -> tuple[int, ...]:
        if tensor not in self.gguf.tensors:
            raise ModelLoadError(f"The GGUF file has no tensor {tensor}.")
        return self.gguf.tensors[tensor].shape

    def factors(self, tensor: str) -> list[float]:
        """The numbers in a short tensor."""
        self.shape(tensor)
        stored = self.gguf.tensors[tensor]
        if stored.type_name != "F32" or stored.num_elements > _MAX_FACTORS:
            raise ModelLoadError(f"{tensor} must hold at most {_MAX_FACTORS} numbers as F32.")
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            return [number for (number,) in struct.iter_unpack("<f", file.read(stored.nbytes))]

    def dtype(self) -> str:
        """The number format that most of the weights have; bfloat16 if they are quantized."""
        return _DTYPES.get(self.gguf.quantization, "bfloat16")

    def num_layers(self) -> int:
        # Those that guess further tokens are counted, and are the last.
        count = self.integer("block_count") - int(self.number("nextn_predict_layers", 0))
        if not 0 < count <= _MAX_LAYERS:
            raise ModelLoadError(f"The GGUF file describes a model of {count} layers.")
        return count

    def head_dim(self) -> int:
        size = self.integer("embedding_length") // self.integer("attention.head_count")
        head_dim = self.integer("attention.key_length", max(size, 1))
        if self.integer("attention.value_length", head_dim) != head_dim:
            raise ModelLoadError(
                "The GGUF file's keys and values differ in length, which is not supported for "
                f"the architecture {self.gguf.architecture}."
            )
        return head_dim

    def num_key_value_heads(self) -> int:
        return self.integer("attention.head_count_kv", self.integer("attention.head_count"))

    def intermediate_size(self) -> int:
        return self.integer("feed_forward_length")

    def rope(self, head_dim: int) -> dict[str, Any]:
        """`rope_parameters`."""
        rope: dict[str, Any] = {"rope_theta": self.number("rope.freq_base", 10_000.0)}
        rotated = self.integer("rope.dimension_count", head_dim)
        rope["partial_rotary_factor"] = rotary_factor(rotated, head_dim)
        return rope | self.scaling()

    def scaling(self) -> dict[str, Any]:
        """Of `rope_parameters`, how positions beyond the original ones are reached."""
        scaling = {
            "factor": self.get("rope.scaling.factor"),
            "original_max_position_embeddings": self.get("rope.scaling.original_context_length"),
            "attention_factor": self.get("rope.scaling.yarn_attn_factor"),
            "beta_fast": self.get("rope.scaling.yarn_beta_fast"),
            "beta_slow": self.get("rope.scaling.yarn_beta_slow"),
        }
        kind = self.get("rope.scaling.type", "linear" if scaling["factor"] else "none")
        if self.get("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
            raise ModelLoadError("The GGUF file's rope.scaling.yarn_ext_factor is not supported.")
        if self.has("rope_freqs.weight"):
            # Llama 3's scaling, computed by the converter: a factor for each frequency.
            factors = self.factors("rope_freqs.weight")
            return {
                "rope_type": "longrope",
                "short_factor": factors,
                "long_factor": factors,
                "attention_factor": 1.0,
            }
        if kind == "longrope" or self.has("rope_factors_short.weight"):
            return {
                "rope_type": "longrope",
                "short_factor": self.factors("rope_factors_short.weight"),
                "long_factor": self.factors("rope_factors_long.weight"),
                "attention_factor": self.get("rope.scaling.attn_factor"),
                "original_max_position_embeddings": scaling["original_max_position_embeddings"],
            }
        if kind == "none":
            return {}
        if kind == "linear":
            return {"rope_type": "linear", "factor": scaling["factor"]}
        return {"rope_type": kind} | scaling

    def _check_read(self) -> None:
        """Raises: ModelLoadError: there is a key that nobody has read, and it is not off."""
        for key, value in self.gguf.metadata.items():
            name = key.removeprefix(self._prefix)
            if name != key and name not in self._read | _HARMLESS and value not in (0, "", []):
                raise ModelLoadError(
                    f"The GGUF file has {key[:100]}={str(value)[:80]}, which changes what the "
                    "model computes and is not supported for this architecture."
                )


_KEYS = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def rotary_factor(rotated: int, head_dim: int) -> float:
    """`partial_rotary_factor`."""
    part = rotated / head_dim
    if int(part * head_dim) != rotated:  # as it is read; rounding took it below
        part = math.nextafter(part, 2)
    return part


def shortest(value: float) -> float:
    """The number that was meant: a file holds 1e-06 as 9.999999974752427e-07."""
    short = float(f"{value:.7g}")
    return short if math.isfinite(value) and _float32(short) == _float32(value) else value


def _float32(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf
