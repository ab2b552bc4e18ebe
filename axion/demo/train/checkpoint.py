"""Writes the trained network as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from axion.demo.chat import END_OF_TEXT, END_OF_TURN, TEMPLATE
from axion.demo.train.network import Network
from axion.demo.train.tokenizer import save_tokenizer


def save_checkpoint(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the weights in bfloat16, the configuration, the tokenizer and the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read
    vocabulary = tokenizer.get_vocab()
    end, pad = vocabulary[END_OF_TURN], vocabulary[END_OF_TEXT]
    _write(folder / "config.json", _config(network, [end, pad], pad))
    _write(
        folder / "generation_config.json",
        {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad},
    )
    save_tokenizer(tokenizer, folder)
    if folder.resolve() != TEMPLATE.parent.resolve():
        shutil.copy(TEMPLATE, folder)


def _config(network: Network, eos: list[int], pad: int) -> dict[str, Any]:
    config = network.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": eos,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "pad_token_id": pad,
        "pretraining_tp": 1,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(f"{json.dumps(value, indent=2)}\n", encoding="utf-8")
