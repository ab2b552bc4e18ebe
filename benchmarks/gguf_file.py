"""The checkpoint of a shape as a GGUF file, for llama.cpp."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType

# llama.cpp computes a Mistral as a Llama.
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}


def make_gguf(folder: Path, kind: str, quantize: str | None) -> Path:
    """The GGUF file of the checkpoint in `folder`, which lies beside it; made if it is not there.

    Args:
        kind: `BF16`, or what llama-quantize calls it, such as `Q8_0`.
        quantize: path of llama-quantize; needed unless the kind is `BF16`.
    """
    file = folder.with_name(f"{folder.name}-{kind}.gguf")
    if file.exists() and file.stat().st_mtime >= (folder / "config.json").stat().st_mtime:
        return file
    part = file.with_suffix(".part")
    if kind == "BF16":
        write_bf16(folder, part)
    elif quantize is None:
        raise FileNotFoundError(f"llama-quantize, which makes {kind} files, is not installed")
    else:
        source = make_gguf(folder, "BF16", quantize)
        subprocess.run([quantize, source, part, kind], check=True, capture_output=True)
    return part.replace(file)


def write_bf16(folder: Path, file: Path) -> None:
    """Matrices stay bfloat16, norms become float32; rotary scaling is left out."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    num_layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_block_count(num_layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder)
    names = gguf.get_tensor_name_map(architecture, num_layers)
    for name, stored in _tensors(folder / "model.safetensors").items():
        known = names.get_name(name, try_suffixes=(".weight",))
        assert known is not None, f"llama.cpp has no name for {name}"
        if stored.ndim == 1:
            writer.add_tensor(known, _as_float32(stored))
        else:  # the writer takes bytes of what numpy has no type for
            writer.add_tensor(known, stored.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocab))
    writer.add_token_types(
        [TokenType.CONTROL if id in special else TokenType.NORMAL for id in vocab.values()]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(vocab[config["eos_token"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template(config["chat_template"])


def _tensors(file: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint16]]]:
    """Of a safetensors file in bfloat16, mapped."""
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(length))
    header.pop("__metadata__")
    numbers = np.memmap(file, np.uint16, "r", offset=8 + length)
    return {
        name: numbers[entry["data_offsets"][0] // 2 : entry["data_offsets"][1] // 2].reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


def _as_float32(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (values.astype(np.uint32) << 16).view(np.float32)
