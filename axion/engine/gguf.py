"""A GGUF file as a checkpoint: its tensors under the names that the model's modules have.

Converters to GGUF rename tensors, and change some: they stack experts, reorder the rows of queries
and keys, add to norms. Which name became which is in gguf's own tables (`get_tensor_name_map`);
what else was done is here undone. That moves whole rows, which quantized ones allow too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from torch import Tensor, nn

from axion.errors import ModelLoadError
from axion.hub.gguf import FLOAT_TYPES, GGUF, read_gguf
from axion.hub.gguf import StoredTensor as FileTensor
from axion.hub.gguf_config import gguf_config
from axion.layers.conv import CausalConv1d
from axion.layers.embedding import Embedding
from axion.layers.linear import FusedLinear, Linear, PackedLinear, TransposedLinear
from axion.layers.moe import ExpertLinear
from axion.models.base import CausalLM
from axion.models.gated_delta_net import GatedDeltaNet, GatedDeltaNetConfig
from axion.models.mamba2_mixer import Mamba2Mixer
from axion.models.registry import load_model_class
from axion.quantization.gguf_blocks import dequantize
from axion.quantization.stored import StoredTensor, stored_part

# Architectures whose queries and keys the converter reorders, for it rotates neighbours as pairs.
_PAIRED = frozenset(
    {"llama", "mistral3", "granite", "granitemoe", "granitehybrid", "olmo", "smollm3"}
)
# Those to whose norms it adds the 1 that these models do.
_SHIFTED = frozenset({"gemma", "gemma2", "gemma3", "nemotron", "qwen3next", "qwen35", "qwen35moe"})
# Tensors that are neither a weight nor a bias: what the tables know them as, behind their module's
# path, and the end of their name.
_OTHERS = {
    "e_score_correction_bias": ("e_score_correction", ".bias"),
    "sinks": ("sinks", ".weight"),
    "layer_scalar": ("layer_scalar", ".weight"),
    "scale": ("proj", ".scale"),
    "correct_output_scale": ("correct_output_scale", ".weight"),
    "dt_bias": ("dt_proj", ".bias"),
    "A_log": ("A_log", ""),
    "D": ("D", ""),
}
_FALCON_NORMS = {"attn_norm": "attn_norm_2", "attn_norm_2": "attn_norm"}
# Read already, to know the model's rotary embedding.
_ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}

# From what the file has of some tensors to what the model has; on all dimensions but the last, so
# that it does for quantized rows what it does for others.
Move = Callable[..., Tensor]


def _same(x: Tensor) -> Tensor:
    return x


class GGUFCheckpoint:
    """The model in a GGUF file, or in several that it is split into.

    Raises:
        ModelLoadError: the file is damaged, or its architecture, something that it asks for, or
            the type of a tensor is not supported.
    """

    def __init__(self, path: Path) -> None:
        gguf = read_gguf(path)
        _check_types(gguf)
        self.config = gguf_config(gguf)
        try:
            model_class = load_model_class(self.config)
            with torch.device("meta"):
                model = model_class(model_class.config_cls.from_dict(self.config))
        except ModelLoadError as error:
            message = error.message.replace("config.json", path.name)
            raise ModelLoadError(message) from None
        except RuntimeError as error:  # more bytes than 64 bits can count
            raise ModelLoadError(f"{path.name} describes tensors beyond all measure.") from error
        self.tensors = {tensor.name: tensor for tensor in _Translation(gguf, model).tensors()}
        if any(tensor.dtype not in FLOAT_TYPES for tensor in self.tensors.values()):
            self.config["quantization_config"] = {"quant_method": "gguf"}


def _check_types(gguf: GGUF) -> None:
    for tensor in gguf.tensors.values():
        if tensor.type is None:
            raise ModelLoadError(
                f"{tensor.file.name}: {tensor.name[:100]} is stored as {tensor.type_name}, which "
                "Axion does not load. Use a version of the model in Q4_K_M, Q8_0 or another of "
                "the common formats, or the engine llama_cpp."
            )


class _Translation:
    """From the tensors of `gguf` to those of `model`, which is on the meta device."""

    def __init__(self, gguf: GGUF, model: CausalLM) -> None:
        self._gguf = gguf
        self._model = model
        self._config = model.config
        [arch] = [key for key, name in MODEL_ARCH_NAMES.items() if name == gguf.architecture]
        self._names = get_tensor_name_map(arch, model.config.num_hidden_layers)
        self._files = {
            file: torch.from_file(
                str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8
            )
            for file in gguf.files
        }
        self._left = {
            name
            for name in gguf.tensors
            if name not in _ROPE_TENSORS and not self._is_beyond(name) and not self._is_idle(name)
            # What the inputs of a weight in NVFP4 were multiplied by, which are not rounded here.
            if not name.endswith(".input_scale")
        }
        self._scales: list[StoredTensor] = []

    def _is_beyond(self, name: str) -> bool:
        """Of a layer behind the last, which guesses further tokens."""
        layer = re.match(r"blk\.(\d{1,9})\.", name)
        announced = self._gguf.metadata.get(f"{self._gguf.architecture}.nextn_predict_layers")
        return bool(announced and layer) and int(layer[1]) >= self._config.num_hidden_layers

    def _is_idle(self, name: str) -> bool:
        """Keys and values of a layer that reads those of another."""
        layer = re.match(r"blk\.(\d{1,9})\.attn_(k|v|k_norm)\.", name)
        num_layers = self._config.num_hidden_layers
        num_shared = getattr(self._config, "num_kv_shared_layers", 0)
        return bool(layer) and num_layers - num_shared <= int(layer[1]) < num_layers

    def tensors(self) -> list[StoredTensor]:
        """Raises: ModelLoadError: one is missing, or is not the architecture's; names it."""
        found = list(self._found())
        if self._left:
            more = f" and {len(self._left) - 3} more" if len(self._left) > 3 else ""
            names = ", ".join(repr(name[:100]) for name in sorted(self._left)[:3])
            raise ModelLoadError(
                f"The GGUF file has tensors that are not part of its architecture: {names}{more}."
            )
        return found + self._scales

    def _found(self) -> Iterator[StoredTensor]:
        seen: set[Tensor] = set()
        for path, module in self._model.named_modules():
            parent = path.rpartition(".")[0]
            for name, tensor in stored_part(module):
                if tensor in seen:  # a tied head is its embedding
                    continue
                seen.add(tensor)
                if isinstance(module, PackedLinear):
                    yield from self._packed(parent, module, name)
                elif isinstance(module, ExpertLinear):
                    yield from self._experts(parent, module, name)
                else:
                    yield self._plain(path, module, name)

    def _packed(self, parent: str, linear: PackedLinear, name: str) -> Iterator[StoredTensor]:
        """The projections that are one in the model, and in some files."""
        start = 0
        for shard, size in linear.shards.items():
            stored = self._name(f"{parent}.{shard}", name)
            move: Move = _same
            if self._gguf.architecture in _PAIRED and shard in ("q_proj", "k_proj"):
                move = _unpaired(size // self._config.head_dim)
            if self._gguf.architecture == "qwen3next" and shard.startswith("in_proj"):
                stored, move = self._of_key_heads(stored, shard)
            if stored not in self._gguf.tensors and shard in ("q_proj", "k_proj", "v_proj"):
                stored = re.sub(r"attn_[qkv]\b", "attn_qkv", stored)
                move = _rows(slice(start, start + size), move)
            start += size
            own = f"{parent}.{shard}.{name}"
            yield self._tensor(own, [stored], move, keeps=name == "weight")

    def _experts(self, parent: str, linear: ExpertLinear, name: str) -> Iterator[StoredTensor]:
        """A file stacks the experts."""
        start = 0
        for shard, size in linear.shards.items():
            move: Move = _same
            if shard == "gate_up_proj":  # gpt-oss: the rows of the two take turns
                halves = ("gate_proj", "up_proj")
                stored = [self._name(f"{parent}.{half}", name) for half in halves]
                move = _in_turns
            else:
                path = f"{parent}.{shard}"
                if shard != "down_proj" and self._names.get_name(path) is None:
                    path = f"{parent}.gate_up_proj"
                stored = [self._name(path, name)]
            if stored[0] not in self._gguf.tensors:
                stored[0] = re.sub(r"ffn_(gate|up)_exps", "ffn_gate_up_exps", stored[0])
            if "ffn_gate_up_exps" in stored[0]:
                move = _rows(slice(start, start + size), move)
            start += size
            for expert in range(linear.num_experts):
                own = f"{parent}.{expert}.{shard}.{name}"
                keeps = name == "weight"
                yield self._tensor(own, stored, move, keeps=keeps, part=expert)

    def _plain(self, path: str, module: nn.Module, name: str) -> StoredTensor:
        own = f"{path}.{name}"
        stack = r"(.+\.[qk]_layernorm|model\.altup_\w+)(?:\.norms)?\.(\d+)"
        if match := re.fullmatch(stack, path):
            return self._tensor(own, [self._name(match[1], name)], part=int(match[2]))
        stored = self._name(path, name)
        if path.endswith(".kv_b_proj") and stored not in self._gguf.tensors:
            halves = [stored.replace("attn_kv_b", half) for half in ("attn_k_b", "attn_v_b")]
            return self._tensor(own, halves, _joined, keeps=False)
        if name == "A_log":  # stored is what it stands for, -exp(A_log)
            return self._tensor(own, [stored], lambda x: (-x).log().flatten(), keeps=False)
        if name == "D" or path.endswith(".self_attn.norm"):
            return self._tensor(own, [stored], Tensor.flatten, keeps=False)
        if isinstance(module, CausalConv1d) and name == "weight":
            return self._tensor(own, [stored], lambda x: x.unsqueeze(1), keeps=False)
        if name == "per_expert_scale" and self._is_in_scales(stored):
            return self._tensor(own, [stored], torch.ones_like, keeps=False)
        if self._gguf.architecture in _SHIFTED and own.endswith("norm.weight"):
            return self._tensor(own, [stored], lambda x: x - 1, keeps=False)
        if isinstance(module, TransposedLinear) and name == "weight":
            is_quantized = self._stored(stored).type_name not in FLOAT_TYPES
            return self._tensor(own, [stored], lambda x: x if is_quantized else x.mT)
        if path.endswith(".shared_expert_gate"):
            # Once it was written without its one row.
            return self._tensor(own, [stored], lambda x: x.reshape(1, -1), keeps=False)
        if path.endswith(".qkv_proj") and not isinstance(module, FusedLinear):
            return self._tensor(own, [stored], self._by_head())
        return self._tensor(own, [stored], keeps=isinstance(module, Linear | Embedding))

    def _by_head(self) -> Move:
        """From all queries, then all keys and all values, to the order that the model has."""
        config = self._config
        num_heads = config.num_attention_heads
        if self._gguf.architecture == "gptneox":
            return lambda x: x.unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(0, 2)
        num_groups = config.num_key_value_heads
        sizes = [count * config.head_dim for count in (num_heads, num_groups, num_groups)]

        def move(x: Tensor) -> Tensor:
            parts = [part.unflatten(0, (num_groups, -1)) for part in x.split(sizes)]
            return torch.cat(parts, dim=1).flatten(0, 1)

        return move if self._gguf.architecture == "falcon" else _same

    def _of_key_heads(self, stored: str, shard: str) -> tuple[str, Move]:
        """Where a projection is whose rows may lie, with those of others, by key heads."""
        config = self._config
        assert isinstance(config, GatedDeltaNetConfig)
        num_keys = config.linear_num_key_heads
        num_values = config.linear_num_value_heads // num_keys
        if stored.endswith("ssm_ba.weight"):
            sizes = [num_values, num_values]
            parts = [("in_proj_b", "in_proj_a").index(shard)]
        elif stored not in self._gguf.tensors:  # of the first files
            stored = re.sub(r"attn_(qkv|gate)", "ssm_in", stored)
            value_size = num_values * config.linear_value_head_dim
            sizes = [*[config.linear_key_head_dim] * 2, *[value_size] * 2]
            parts = [3] if shard == "in_proj_z" else [0, 1, 2]
        else:
            return stored, _same

        def move(x: Tensor) -> Tensor:
            rows = x.unflatten(0, (num_keys, -1)).split(sizes, dim=1)
            return torch.cat([rows[part].flatten(0, 1) for part in parts])

        return stored, move

    def _is_in_scales(self, stored: str) -> bool:
        """Factors of experts in NVFP4 are in the scales that these have anyway."""
        weight = self._gguf.tensors.get(f"{stored.removesuffix('scale')}weight")
        return weight is not None and weight.type_name == "NVFP4"

    def _name(self, path: str, name: str) -> str:
        """What the file calls a tensor of the model."""
        suffix = f".{name}"
        if name == "per_expert_scale":
            path, suffix = path.replace(".router", ".experts.down_proj"), ".scale"
        elif name in _OTHERS:
            known, suffix = _OTHERS[name]
            path = f"{path}.{known}"
        stored = self._names.get_name(self._mixer(path))
        if stored is None:
            raise ModelLoadError(
                f"GGUF files of the architecture {self._gguf.architecture} hold no {path}{suffix}."
            )
        if self._gguf.architecture == "granitehybrid" and stored + suffix not in self._gguf.tensors:
            stored = stored.removesuffix("_shexp")  # without others it is the layer's MLP
        if self._gguf.architecture == "falcon" and "blk.0.attn_norm_2.weight" in self._gguf.tensors:
            # Of the newer layers attention has the second norm.
            layer, _, last = stored.rpartition(".")
            stored = f"{layer}.{_FALCON_NORMS.get(last, last)}" if layer else last
        return stored + suffix

    def _mixer(self, path: str) -> str:
        """A path in a recurrent layer, whose mixer the tables have under its own name."""
        layer, attention, part = path.partition(".self_attn.")
        if not attention:
            return path
        mixer = self._model.get_submodule(f"{layer}.self_attn")
        if isinstance(mixer, Mamba2Mixer):
            return f"{layer}.mamba.{part}"
        if not isinstance(mixer, GatedDeltaNet):
            return path
        if self._gguf.architecture == "qwen3next" and part in ("in_proj_b", "in_proj_a"):
            part = "in_proj_ba"
        return f"{layer}.linear_attn.{'out_proj' if part == 'o_proj' else part}"

    def _stored(self, name: str) -> FileTensor:
        if name not in self._gguf.tensors:
            raise ModelLoadError(f"The GGUF file has no tensor {name}.")
        return self._gguf.tensors[name]

    def _tensor(
        self,
        name: str,
        stored: list[str],
        move: Move = _same,
        *,
        keeps: bool = True,
        part: int | None = None,
    ) -> StoredTensor:
        """A tensor of the model.

        Args:
            stored: what it is made of.
            move: what becomes of it; on all dimensions but the last, if `keeps`.
            keeps: its module keeps quantized rows.
            part: of stacks only this one.
        """
        tensors = [self._stored(part) for part in stored]
        scales = [self._scale(tensor, part) for tensor in tensors]
        self._left -= set(stored)
        kinds = {tensor.type_name for tensor in tensors}
        keeps = keeps and len(kinds) == 1 and (len(tensors) == 1 or not any(scales))
        if keeps and scales[0] is not None:
            own = f"{name.removesuffix('weight')}scale"
            self._scales.append(StoredTensor(own, tensors[0].file.name, (), "F32", scales[0]))

        def read() -> Tensor:
            parts = [self._read(tensor, part, keeps=keeps) for tensor in tensors]
            if not keeps:
                pairs = zip(parts, scales, strict=True)
                parts = [x if scale is None else x * scale() for x, scale in pairs]
            return move(*parts)

        try:
            empty = (torch.empty(tensor.shape, device="meta") for tensor in tensors)
            shape = move(*(x if part is None else x[part] for x in empty)).shape
        except (RuntimeError, IndexError):
            shapes = " and ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)
            raise ModelLoadError(
                f"The GGUF file's tensors do not fit its metadata: {shapes}. Convert it again."
            ) from None
        return StoredTensor(
            name,
            tensors[0].file.name,
            tuple(shape),
            kinds.pop() if keeps else "F32",
            read,
        )

    def _scale(self, weight: FileTensor, part: int | None) -> Callable[[], Tensor] | None:
        """What reads the factor that a weight in NVFP4 has beside its blocks; None: it has none."""
        name = f"{weight.name.removesuffix('weight')}scale"
        scale = self._gguf.tensors.get(name)
        if scale is None or weight.type_name != "NVFP4":
            return None
        shape = (1,) if part is None else weight.shape[:1]
        if scale.type_name != "F32" or scale.shape != shape:
            raise ModelLoadError(
                f"The GGUF file's tensor {name[:100]} is {list(scale.shape)} in {scale.type_name}, "
                f"expected {list(shape)} in F32. Convert it again."
            )
        self._left.discard(name)
        return lambda: self._read(scale, None, keeps=True).flatten()[part or 0]

    def _read(self, tensor: FileTensor, part: int | None, *, keeps: bool) -> Tensor:
        """Numbers, or rows of blocks where these are to be kept; of a stack only one part."""
        assert tensor.type is not None
        data = self._files[tensor.file][tensor.offset : tensor.offset + tensor.nbytes]
        data = data.view(*tensor.shape[:-1], -1)
        if part is not None:
            data = data[part]
        if not keeps:
            return dequantize(data, tensor.type)
        return data.view(_DTYPES.get(tensor.type.name, torch.uint8))


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _rows(rows: slice, move: Move) -> Move:
    return lambda x: move(x[rows])


def _unpaired(num_heads: int) -> Move:
    """From neighbours as pairs to the two halves of a head."""
    return lambda x: x.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _in_turns(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack((a, b), dim=1).flatten(0, 1)


def _joined(keys: Tensor, values: Tensor) -> Tensor:
    """Of DeepSeek's latent: keys `[heads, latent, key]`, values `[heads, value, latent]`."""
    return torch.cat((keys.transpose(1, 2), values), dim=1).flatten(0, 1)
