"""Turns generated conversations into rows of tokens for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from axion.demo.chat import END_OF_TURN, render
from axion.demo.grammar import conversation, conversations
from axion.demo.train.tokenizer import START_OF_TURN, build_tokenizer
from axion.demo.words import CITIES, NAMES, WORDS

IGNORED = -100
SHORT_ROW, LONG_ROW = 256, 1024
# The long rows teach the model to look far back.
SHORT_ROWS, LONG_ROWS = 16, 4
ROWS_PER_PART = LONG_ROW // SHORT_ROW
TOKENS_PER_STEP = SHORT_ROWS * SHORT_ROW + LONG_ROWS * LONG_ROW

_VOCABULARY_SAMPLE = 20_000
_DRAW = 32


@dataclass(frozen=True)
class Rows:
    """Rows of equal length: tokens, the conversation each belongs to, and what should follow."""

    tokens: Tensor
    documents: Tensor
    labels: Tensor

    @property
    def labelled(self) -> int:
        """The number of labelled tokens."""
        return int((self.labels != IGNORED).sum())


def train_tokenizer(seed: int, size: int) -> Tokenizer:
    """A tokenizer for what the grammar says; words to spell, names and places stay letters."""
    sample = conversations(Random(f"tokenizer {seed}"))
    texts = (render(chat.messages, chat.tools) for chat in islice(sample, _VOCABULARY_SAMPLE))
    return build_tokenizer(texts, size, set(" ".join((*WORDS, *NAMES, *CITIES)).split()))


class Batches:
    """The training data of each step, always the same for the same seed and step."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._end = tokenizer.token_to_id(END_OF_TURN)
        self._opening = tokenizer.encode(f"{START_OF_TURN}assistant\n").ids

    def __getitem__(self, step: int) -> list[Rows]:
        """The rows of a step, in parts of about the same size, the long rows first."""
        stream = self._stream(Random(f"step {self._seed} {step}"))
        short: list[list[int]] = []
        long: list[list[int]] = []
        missing = SHORT_ROWS * SHORT_ROW
        while missing > 0:
            tokens = next(stream)
            if len(tokens) <= SHORT_ROW:
                short.append(tokens)
                missing -= len(tokens)
            else:
                long.append(tokens)
        while sum(map(len, long)) < LONG_ROWS * LONG_ROW:
            long.append(next(stream))
        short_rows = _fit(short, SHORT_ROWS, SHORT_ROW)
        starts = range(0, SHORT_ROWS, ROWS_PER_PART)
        return [
            *(self._rows([row], LONG_ROW) for row in _cut(long, LONG_ROWS, LONG_ROW)),
            *(self._rows(short_rows[at : at + ROWS_PER_PART], SHORT_ROW) for at in starts),
        ]

    def _stream(self, rng: Random) -> Iterator[list[int]]:
        while True:
            chats = [conversation(rng) for _ in range(_DRAW)]
            texts = [render(chat.messages, chat.tools) for chat in chats]
            for encoding in self._tokenizer.encode_batch_fast(texts):
                yield encoding.ids

    def _rows(self, rows: list[list[list[int]]], length: int) -> Rows:
        shape = (len(rows), length)
        # What is left of a row is a conversation of its own, without labels.
        tokens, documents = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        labels = torch.full(shape, IGNORED)
        for index, row in enumerate(rows):
            start = 0
            for number, conversation_tokens in enumerate(row):
                part = conversation_tokens[: length - start]
                span = slice(start, start + len(part))
                tokens[index, span] = torch.tensor(part)
                documents[index, span] = number
                labels[index, span] = torch.tensor(self._labels(part))
                start += len(part)
        return Rows(tokens, documents, labels)

    def _labels(self, tokens: list[int]) -> list[int]:
        """For each token the one that should follow, within the assistant's turns only."""
        labels = [IGNORED] * len(tokens)
        speaking = False
        width = len(self._opening)
        for index in range(len(tokens) - 1):
            if tokens[index + 1 - width : index + 1] == self._opening:
                speaking = True
            if speaking:
                labels[index] = tokens[index + 1]
                speaking = tokens[index + 1] != self._end
        return labels


def _fit(pieces: list[list[int]], rows: int, length: int) -> list[list[list[int]]]:
    """Whole pieces in rows, the longest first; what finds no place is left out."""
    filled: list[list[list[int]]] = [[] for _ in range(rows)]
    space = [length] * rows
    for piece in sorted(pieces, key=len, reverse=True):
        for index in range(rows):
            if len(piece) <= space[index]:
                filled[index].append(piece)
                space[index] -= len(piece)
                break
    return filled


def _cut(pieces: list[list[int]], rows: int, length: int) -> list[list[list[int]]]:
    """Pieces one after another; the last one of a row is cut where the row ends."""
    filled: list[list[list[int]]] = [[] for _ in range(rows)]
    rest = iter(pieces)
    for row in filled:
        size = 0
        for piece in rest:
            row.append(piece)
            size += len(piece)
            if size >= length:
                break
    return filled
