"""Every row of the table against transformers: float32 on CPU, logits and greedy tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from axion.engine.loader import load_model
from axion.models.base import CausalLM
from axion.models.registry import model_classes
from tests.parity.checkpoints import CASES, ORIGINAL_LENGTH, build_tiny, save_tiny
from tests.parity.harness import BLOCK_SIZE, Harness, Run

NUM_TOKENS = 32
TOLERANCE = 1e-4
# Within the original context, growing out of it while generating, and beyond it from the start.
PROMPT_LENGTHS = (7, ORIGINAL_LENGTH - 14, ORIGINAL_LENGTH + 26)
PROMPTS = [
    [(31 * i * i + 7 * i + length) % 199 for i in range(length)] for length in PROMPT_LENGTHS
]


class Answer(NamedTuple):
    logits: Tensor
    token_ids: list[int]


def transformers_answer(model: PreTrainedModel, prompt: list[int]) -> Answer:
    """What transformers generates for this request alone."""
    # A dynamic rope keeps the longest length it has seen; a new one has seen none.
    decoder = model.get_decoder()
    if hasattr(decoder, "rotary_emb"):
        decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
    cache, logits, token_ids = DynamicCache(config=model.config), [], []
    input_ids = prompt
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            out = model(torch.tensor([input_ids]), past_key_values=cache, logits_to_keep=1)
            logits.append(out.logits[0, -1])
            input_ids = [int(logits[-1].argmax())]
            token_ids += input_ids
    return Answer(torch.stack(logits), token_ids)


class Row(NamedTuple):
    case: str
    model: CausalLM
    answers: list[Answer]


@pytest.fixture(scope="module", params=CASES)
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    case = request.param
    path = save_tiny(case, tmp_path_factory.mktemp(case))
    model = load_model(path, device=torch.device("cpu"), dtype="float32")
    reference = build_tiny(case)
    return Row(case, model, [transformers_answer(reference, prompt) for prompt in PROMPTS])


def assert_equal(runs: list[Run], answers: list[Answer]) -> None:
    for run, answer in zip(runs, answers, strict=True):
        assert run.output == answer.token_ids
        difference = (torch.stack(run.logits) - answer.logits).abs().max()
        assert difference <= TOLERANCE, f"prompt of {len(run.prompt)}: logits differ {difference}"


def test_alone(row: Row) -> None:
    harness = Harness(row.model)
    runs = [Run(prompt) for prompt in PROMPTS]
    for run in runs:
        harness.generate([run], NUM_TOKENS)
    assert_equal(runs, row.answers)


def test_in_a_batch_that_mixes_prompts_and_generation(row: Row) -> None:
    harness = Harness(row.model)
    runs = [Run(prompt) for prompt in PROMPTS]
    for started in (1, 2):
        for _ in range(5):
            harness.step(
                [(run, len(run.token_ids) - run.num_computed_tokens) for run in runs[:started]]
            )
    # The newest first: the order within a batch means nothing.
    harness.generate(runs[::-1], NUM_TOKENS)
    assert_equal(runs, row.answers)


def test_prompts_in_chunks_beside_generation(row: Row) -> None:
    harness = Harness(row.model)
    runs = [Run(prompt) for prompt in PROMPTS]
    harness.generate(runs, NUM_TOKENS, budget=9)
    assert_equal(runs, row.answers)


def test_over_blocks_that_another_sequence_computed(row: Row) -> None:
    harness = Harness(row.model)
    first = [Run(prompt) for prompt in PROMPTS]
    harness.generate(first, NUM_TOKENS)
    second = []
    for run in first:
        num_blocks = (len(run.prompt) - 1) // BLOCK_SIZE
        second.append(
            Run(
                run.prompt,
                block_tables=[table[:num_blocks] for table in run.block_tables],
                num_computed_tokens=num_blocks * BLOCK_SIZE,
            )
        )
    harness.generate(second, NUM_TOKENS)
    assert_equal(second, row.answers)


def test_after_a_preemption_that_computes_everything_again(row: Row) -> None:
    harness = Harness(row.model)
    runs = [Run(prompt) for prompt in PROMPTS]
    harness.generate(runs, NUM_TOKENS // 2)
    for run in runs:
        run.num_computed_tokens = 0
        run.block_tables = []
    harness.generate(runs, NUM_TOKENS)
    assert_equal(runs, row.answers)


@pytest.mark.parametrize("case", [name for name, row in CASES.items() if row.neutral])
def test_the_reference_moves_when_the_knob_is_neutral(case: str) -> None:
    def logits(model: PreTrainedModel) -> Tensor:
        with torch.inference_mode():
            return model(torch.tensor([PROMPTS[-1]])).logits

    moved = logits(build_tiny(case)) - logits(build_tiny(case, **CASES[case].neutral))
    assert moved.abs().max() > 10 * TOLERANCE


def test_every_architecture_has_a_row() -> None:
    assert {row.architecture for row in CASES.values()} >= model_classes().keys()


@pytest.mark.parametrize("case", ["llama", "llama-tied"])
def test_bfloat16_weights_computed_in_float32(case: str, tmp_path: Path) -> None:
    path = save_tiny(case, tmp_path, torch.bfloat16)
    model = load_model(path, device=torch.device("cpu"), dtype="float32")
    reference = build_tiny(case).to(torch.bfloat16).float()
    runs = [Run(prompt) for prompt in PROMPTS]
    Harness(model).generate(runs, NUM_TOKENS)
    assert_equal(runs, [transformers_answer(reference, prompt) for prompt in PROMPTS])
