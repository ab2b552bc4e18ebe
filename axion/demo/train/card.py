"""Writes the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
language: en
---

# Axion's demo model

A Llama model of {parameters:.1f} million parameters that comes with Axion, so that a server can be
tried and tested without a download. It was trained from nothing, on two CPU cores, on conversations
that the grammar in `axion/demo` generates.

It greets, says what Axion is and how its endpoints are called, adds and subtracts numbers from 0
to 99, counts, spells and reverses words, answers in JSON, calls a calculator or a weather tool and
puts a tool's result into a sentence. For anything else it says that it is a very small model. It is
no source of knowledge.

## Training

    python -m axion.demo.train --steps {steps} --seed {seed}

{steps} steps of {tokens_per_step:,} tokens ({tokens:.1f} million in all) in {minutes:.0f} minutes
on two cores; the loss at the end was {loss:.4f}. The loss counts the assistant's turns only. Half
of a step are rows of 256 tokens, in which conversations do not see each other; the other half are
rows of 1,024 tokens, in which they do. So the model has learnt positions up to 1,024; from there to
2,048 it is on its own.

## Accuracy

Greedy answers to {per_skill} questions for each skill, whose phrasings, number pairs, words, names
and places were kept out of training (`python -m axion.demo.evaluate --per-skill {per_skill}`):

| skill | right |
| --- | ---: |
{table}

## Format

ChatML turns, tools in the Hermes format, no token at the beginning of a text. The tokenizer is a
byte-level BPE without merges: words of the grammar's sentences are one token each, and every other
word is read letter by letter.
"""


@dataclass(frozen=True)
class Training:
    """How a model was trained."""

    steps: int
    tokens: int
    minutes: float
    loss: float
    seed: int
    parameters: int


def write_card(
    folder: Path, training: Training, accuracy: Mapping[str, float], per_skill: int
) -> None:
    """Writes `README.md` into the model's folder."""
    card = _CARD.format(
        parameters=training.parameters / 1e6,
        steps=training.steps,
        seed=training.seed,
        tokens_per_step=training.tokens // training.steps,
        tokens=training.tokens / 1e6,
        minutes=training.minutes,
        loss=training.loss,
        per_skill=per_skill,
        table="\n".join(f"| {skill} | {share:.1%} |" for skill, share in accuracy.items()),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
