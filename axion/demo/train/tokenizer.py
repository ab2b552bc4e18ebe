"""Builds the demo model's tokenizer.

It is a byte-level BPE whose vocabulary holds the whole words of the grammar's sentences and no
merges. A word in the vocabulary is one token, any other word is read letter by letter. So prose
stays short, while the model sees the letters of what it spells and copies (words, names, keys, the
names of tools) and the digits of numbers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from axion.demo.chat import END_OF_TEXT, END_OF_TURN
from axion.demo.words import words_of

START_OF_TURN = "<|im_start|>"
SPECIAL = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)
# Single tokens that stay in the text, since they are part of the answer.
MARKERS = (
    "<tools>",
    "</tools>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)

# Words that every request with tools or about the API contains. Other small words without a space
# before them are identifiers, which a model that copies letters copies whatever they are.
_WHOLE = words_of(
    """
    system user assistant type function name description parameters properties required string
    number integer object enum arguments true false additionalProperties strict chat completions
    models embeddings rerank health metrics version localhost http api key base url
    """
)

# Words with the space before them, one digit, a run of marks, or space.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "add_bos_token": False,
    "add_eos_token": False,
    "bos_token": None,
    "eos_token": END_OF_TURN,
    "pad_token": END_OF_TEXT,
    "unk_token": None,
    "clean_up_tokenization_spaces": False,
}


def build_tokenizer(texts: Iterable[str], size: int, spelled: Set[str]) -> Tokenizer:
    """A tokenizer whose vocabulary is every byte and the most frequent words of the texts.

    Args:
        texts: What the vocabulary is counted in.
        size: The number of tokens.
        spelled: Words that stay letters however frequent they are.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    added = (*SPECIAL, *MARKERS)
    any_added = re.compile("|".join(map(re.escape, added)))
    counts: Counter[str] = Counter()
    for text in texts:
        for part in any_added.split(text):
            counts.update(piece for piece, _ in splitter.pre_tokenize_str(part))
    for piece in list(counts):
        word = piece.removeprefix("Ġ")  # the byte-level form of a space before the word
        is_identifier = re.fullmatch("[a-z]+", piece) and piece not in _WHOLE
        if word in spelled or is_identifier:
            del counts[piece]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_frequency = sorted(counts, key=lambda piece: (-counts[piece], piece))
    words = [piece for piece in by_frequency if len(piece) > 1][: size - len(added) - len(alphabet)]
    vocabulary = {piece: index for index, piece in enumerate((*added, *alphabet, *words))}

    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in MARKERS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(_CONFIG, indent=2)
    (folder / "tokenizer_config.json").write_text(f"{config}\n", encoding="utf-8")
