"""The model folder: small, ordinary, and able to do what its card says."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from axion.demo import MODEL_DIR
from axion.demo.chat import render
from axion.demo.evaluate import cases, evaluate, transformers_generate
from axion.demo.grammar import conversation
from axion.demo.train.network import Network, NetworkConfig
from axion.demo.words import CITIES, NAMES, WORDS

LARGEST_FOLDER = 8_000_000
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_the_folder_is_ordinary_and_small() -> None:
    assert {path.name for path in MODEL_DIR.iterdir()} == FILES
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= LARGEST_FOLDER


def test_transformers_finds_every_weight_and_no_other() -> None:
    model, info = AutoModelForCausalLM.from_pretrained(MODEL_DIR, output_loading_info=True)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(parameter.numel() for parameter in model.parameters()) < 4_000_000


def test_config_says_what_engines_look_for() -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["head_dim"] in (32, 64)
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] >= 1024


def test_answers_end_at_the_end_of_a_turn_or_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text())
    ends = tokenizer.convert_ids_to_tokens(generation["eos_token_id"])
    assert ends == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_trainer_computes_what_transformers_computes() -> None:
    network = Network(NetworkConfig())
    weights = load_file(MODEL_DIR / "model.safetensors")
    network.load_state_dict({name.removeprefix("model."): w for name, w in weights.items()})
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    tokens = torch.randint(9, 768, (2, 300), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(tokens, -100)
    labels[:, 10:-1] = tokens[:, 11:]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        short = network(tokens[:, :200], torch.zeros(2, 200), labels[:, :200])
        long = network(tokens, torch.zeros(2, 300), labels)
    for loss, length in ((short, 200), (long, 300)):
        with torch.inference_mode():
            logits = model(tokens[:, :length]).logits
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, :length].flatten()
        )
        torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.01)


def test_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = Random(4)
    texts = [render(chat.messages, chat.tools) for chat in (conversation(rng) for _ in range(100))]
    texts += ["Grüße, 世界! 🎉\n\n\tdef f(x):\n    return x  # 1,234.5", " ", "a  b   c\r\n"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert None not in ids


def test_no_token_begins_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("Hello")["input_ids"] == tokenizer.convert_tokens_to_ids(["Hello"])
    assert tokenizer.bos_token is None


@pytest.mark.parametrize("text", ["lantern", "enots", "grape"])
def test_a_word_that_no_sentence_uses_is_letters(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    assert tokenizer.tokenize(text) == list(text)
    assert tokenizer.tokenize(f" {text}") == ["Ġ", *text]


def test_numbers_are_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("2048+7") == ["2", "0", "4", "8", "+", "7"]


def test_words_to_spell_names_and_places_are_letters(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = tokenizer.get_vocab().keys()
    for word in " ".join((*WORDS, *NAMES, *CITIES)).split():
        assert word not in vocabulary
        assert f"Ġ{word}" not in vocabulary


@pytest.mark.parametrize("marker", ["<tool_call>", "</tool_call>", "<tool_response>", "<tools>"])
def test_markers_are_one_token_and_stay_in_the_text(
    tokenizer: PreTrainedTokenizerFast, marker: str
) -> None:
    ids = tokenizer(marker)["input_ids"]
    assert len(ids) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == marker


@pytest.mark.parametrize("marker", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
def test_special_tokens_are_one_token_and_leave_the_text(
    tokenizer: PreTrainedTokenizerFast, marker: str
) -> None:
    ids = tokenizer(marker)["input_ids"]
    assert len(ids) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_the_model_answers_questions_it_never_saw() -> None:
    accuracy = evaluate(transformers_generate(), cases(seed=11, per_skill=6))
    assert sum(accuracy.values()) / len(accuracy) >= 0.9, accuracy
    assert min(accuracy.values()) >= 0.5, accuracy
