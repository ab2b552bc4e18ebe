"""Training: its data, its schedule, and a run of a few steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from axion.demo import MODEL_DIR
from axion.demo.train import data, loop
from axion.demo.train.data import (
    IGNORED,
    LONG_ROW,
    SHORT_ROW,
    TOKENS_PER_STEP,
    Batches,
    Rows,
)
from axion.demo.train.loop import Trainer, learning_rate_share, train
from axion.demo.train.network import Network, NetworkConfig

SMALL = NetworkConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
)


@pytest.fixture(scope="module")
def committed() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def test_a_step_has_the_same_rows_whenever_it_is_asked_for(committed: Tokenizer) -> None:
    for rows, again in zip(Batches(committed, 1)[7], Batches(committed, 1)[7], strict=True):
        assert torch.equal(rows.tokens, again.tokens)
        assert torch.equal(rows.labels, again.labels)


def test_steps_and_seeds_differ(committed: Tokenizer) -> None:
    first = Batches(committed, 1)[7][0].tokens
    assert not torch.equal(first, Batches(committed, 1)[8][0].tokens)
    assert not torch.equal(first, Batches(committed, 2)[7][0].tokens)


def test_a_step_is_made_of_equal_parts_that_are_full(committed: Tokenizer) -> None:
    parts = Batches(committed, 1)[0]
    assert {part.tokens.numel() for part in parts} == {LONG_ROW}
    assert sum(part.tokens.numel() for part in parts) == TOKENS_PER_STEP
    for part in parts:
        assert (part.documents >= 0).float().mean() > 0.8
        assert part.labelled > 100


def test_parts_add_up_to_the_gradient_of_the_whole(committed: Tokenizer) -> None:
    torch.manual_seed(0)
    network = Network(SMALL)
    parts = [part for part in Batches(committed, 1)[0] if part.tokens.shape[1] == SHORT_ROW]
    loss = Trainer(network).add_gradients(parts)
    whole = Rows(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.documents for part in parts]),
        torch.cat([part.labels for part in parts]),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(whole.tokens, whole.documents, whole.labels)
    assert loss == pytest.approx(expected.item(), rel=1e-3)
    parameters = list(network.parameters())
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(expected, parameters), strict=True
    ):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).norm() < 0.05 * gradient.norm()


def test_labels_are_the_assistants_words_and_the_end_of_its_turn(committed: Tokenizer) -> None:
    for rows in Batches(committed, 1)[3]:
        labelled = rows.labels != IGNORED
        following = rows.tokens.roll(-1, dims=1)
        assert torch.equal(rows.labels[labelled], following[labelled])
        for tokens, labels in zip(rows.tokens.tolist(), rows.labels.tolist(), strict=True):
            text = committed.decode(tokens, skip_special_tokens=False)
            turns = text.split("<|im_start|>assistant\n")[1:]
            expected = "".join(turn.partition("<|im_end|>")[0] + "<|im_end|>" for turn in turns)
            kept = [label for label in labels if label != IGNORED]
            said = committed.decode(kept, skip_special_tokens=False)
            assert expected.startswith(said)  # the last turn of a long row may be cut
            assert len(said) >= len(expected) - len(turns[-1].partition("<|im_end|>")[0]) - 10


def test_conversations_in_a_short_row_do_not_see_each_other(committed: Tokenizer) -> None:
    torch.manual_seed(0)
    network = Network(SMALL)
    tokens = torch.randint(9, SMALL.vocab_size, (1, 60))
    documents = (torch.arange(60) >= 30).long()[None]
    labels = torch.full((1, 60), IGNORED)
    labels[0, 50] = 77
    changed = tokens.clone()
    changed[0, :30] = 300
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apart = [network(each, documents, labels) for each in (tokens, changed)]
        together = [network(each, torch.zeros(1, 60), labels) for each in (tokens, changed)]
    assert torch.equal(*apart)
    assert not torch.equal(*together)


def test_the_learning_rate_rises_once_and_falls_to_nothing() -> None:
    shares = [learning_rate_share(step, 1000) for step in range(1000)]
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert 0 < shares[-1] < 0.01


def test_a_short_run_learns_and_leaves_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SHORT_ROWS", data.ROWS_PER_PART)
    monkeypatch.setattr(data, "LONG_ROWS", 1)
    monkeypatch.setattr(data, "_VOCABULARY_SAMPLE", 2000)
    monkeypatch.setattr(loop, "_WARMUP_STEPS", 1)
    monkeypatch.setattr(loop, "_LOSS_SMOOTHING", 0.0)
    training = train(tmp_path, steps=8, minutes=None, seed=3)
    assert training.steps == 8
    assert training.loss < 6  # a model that knows nothing has ln 768, which is 6.6
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_the_command_line_explains_itself() -> None:
    command = [sys.executable, "-m", "axion.demo.train", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(flag in text for flag in ("--out", "--minutes", "--steps", "--seed", "--eval-only"))
