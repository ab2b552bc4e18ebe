"""Writes the model that the tests of real engines serve: a small Llama of random weights.

Its tokenizer is a byte-level BPE with GPT-2's splitting, which every engine knows, trained on the
Markdown of this repository. Head size 64 is the smallest that vLLM's attention on a CPU takes. Rows
of the output layer that stand for anything but printable ASCII are zero, so that greedy answers
never end early and stay the same text however their bytes are cut.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 1024
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TOKENIZER_CONFIG = """{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "bos_token": null,
  "eos_token": "<|im_end|>",
  "pad_token": "<|endoftext|>",
  "unk_token": null,
  "clean_up_tokenization_spaces": false,
  "model_max_length": 2048
}
"""


def train_tokenizer(texts: list[Path]) -> Tokenizer:
    """Return a tokenizer of exactly `VOCABULARY` tokens, special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in texts], trainer)
    return tokenizer


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Return the model with weights that depend only on the tokenizer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    silent = [
        index
        for index in range(VOCABULARY)
        if index < len(SPECIAL_TOKENS)
        or not (text := tokenizer.decode([index])).isascii()
        or not text.isprintable()
    ]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0
    return model


def main() -> None:
    """Write the checkpoint into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Write a small random Llama checkpoint.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parents[2]
    tokenizer = train_tokenizer([root / "README.md", *sorted((root / "docs").glob("*.md"))])
    build_model(tokenizer).to(torch.float32).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(TOKENIZER_CONFIG)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


if __name__ == "__main__":
    main()
