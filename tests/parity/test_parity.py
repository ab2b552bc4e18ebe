"""Every row of the table against transformers: float32 on CPU, logits and greedy tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from axion.engine.loader import load_model
from axion.models.base import CausalLM
from axion.models.registry import model_classes
from axion.parity.harness import Harness, Run, alone
from axion.parity.reference import Generated, generate
from axion.parity.tiny import random_prompts
from tests.parity.catalog import next_logits
from tests.parity.checkpoints import CASES, build_tiny, save, save_tiny
from tests.parity.older_names import OLDER_NAMES

NUM_TOKENS = 32
TOLERANCE = 1e-4
PROMPTS = random_prompts()


class Reference:
    """What transformers answers, asked about the tokens of a run.

    In one pass over them its best is each time the token that was generated: it generates the
    same. Where the pass differs it generates step by step: some models round otherwise, or have
    another rope, for each length.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._passes: dict[tuple[int, ...], Generated] = {}
        self._generated: dict[tuple[int, ...], Generated] = {}

    def fault(self, run: Run) -> str | None:
        """How the run differs."""
        assert len(run.output) == NUM_TOKENS
        token_ids, prompt = tuple(run.token_ids), tuple(run.prompt)
        if token_ids not in self._passes:
            logits = next_logits(self.model, run)
            self._passes[token_ids] = Generated(logits, logits.argmax(-1).tolist())
        if _fault(run, self._passes[token_ids]) is None:
            return None
        if prompt not in self._generated:
            self._generated[prompt] = generate(self.model, run.prompt, NUM_TOKENS)
        return _fault(run, self._generated[prompt])


def _fault(run: Run, answer: Generated) -> str | None:
    if run.output != answer.token_ids:
        return f"prompt of {len(run.prompt)}: other tokens"
    difference = (torch.stack(run.logits) - answer.logits).abs().max()
    if not difference <= TOLERANCE:
        return f"prompt of {len(run.prompt)}: logits differ by {difference}"
    return None


class Row(NamedTuple):
    model: CausalLM
    reference: Reference


def together(harness: Harness, prompts: list[list[int]], num_tokens: int) -> list[Run]:
    """Every way of an engine but `alone`, in one batch: prompts in chunks beside generation, over
    blocks that another sequence computed, after a preemption, whole beside generation.
    """
    preempted = [Run(prompt) for prompt in prompts]
    harness.generate(preempted, num_tokens // 2, budget=9)
    warm = [harness.take_over(run) for run in preempted]
    harness.generate(warm, num_tokens // 4)
    for run in preempted:
        run.preempt()
    # The newest first: the order within a batch means nothing.
    harness.generate([*warm, *preempted], num_tokens)
    return [*preempted, *warm]


# Of each architecture; what a field changes is compared where sequences are beside each other.
ALONE = set({row.architecture: case for case, row in reversed(CASES.items())}.values())
ROWS = [
    (case, way) for case in CASES for way in (alone, together) if way is together or case in ALONE
]


@pytest.fixture(scope="module")
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Row:
    reference = build_tiny(request.param)
    path = save(reference, request.param, tmp_path_factory.mktemp(request.param))
    model = load_model(path, device=torch.device("cpu"), dtype="float32")
    return Row(model, Reference(reference))


@pytest.mark.parametrize(("row", "way"), ROWS, indirect=["row"], scope="module")
def test_the_tokens_are_those_of_transformers(row: Row, way: Callable[..., list[Run]]) -> None:
    for run in way(Harness(row.model), PROMPTS, NUM_TOKENS):
        assert row.reference.fault(run) is None


@pytest.mark.parametrize("case", [name for name, row in CASES.items() if row.neutral])
def test_the_reference_moves_when_the_knob_is_neutral(case: str) -> None:
    def logits(model: PreTrainedModel) -> Tensor:
        with torch.inference_mode():
            return model(torch.tensor([PROMPTS[-1]])).logits

    moved = logits(build_tiny(case)) - logits(build_tiny(case, **CASES[case].neutral))
    assert moved.abs().max() > 10 * TOLERANCE


def test_every_class_has_a_row() -> None:
    classes = model_classes()
    rows = {row.inside or row.architecture for row in CASES.values()} | OLDER_NAMES.keys()
    # What reads and writes text in DeepSeek-OCR, and in Step 3.7.
    rows |= {"DeepseekForCausalLM", "Step3p5ForCausalLM"}
    assert {classes[name] for name in rows} >= {*classes.values()}


@pytest.mark.parametrize("case", ["llama", "llama-tied"])
def test_bfloat16_weights_computed_in_float32(case: str, tmp_path: Path) -> None:
    path = save_tiny(case, tmp_path, torch.bfloat16)
    model = load_model(path, device=torch.device("cpu"), dtype="float32")
    reference = build_tiny(case).to(torch.bfloat16).float()
    runs = [Run(prompt) for prompt in PROMPTS]
    Harness(model).generate(runs, NUM_TOKENS)
    assert [Reference(reference).fault(run) for run in runs] == [None] * len(runs)
