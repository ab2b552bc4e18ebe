"""Every row of the table against transformers: float32 on CPU, logits and greedy tokens."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from axion.engine.loader import load_model
from axion.models.base import CausalLM
from axion.models.registry import model_classes
from axion.parity.harness import WAYS, Harness, Run
from axion.parity.reference import Generated, generate
from axion.parity.tiny import random_prompts
from tests.parity.checkpoints import CASES, build_tiny, save_tiny
from tests.parity.older_names import OLDER_NAMES

NUM_TOKENS = 32
TOLERANCE = 1e-4
PROMPTS = random_prompts()
# Of each architecture; what a field changes is compared where sequences are beside each other.
ALONE = set({row.architecture: case for case, row in reversed(CASES.items())}.values())
ROWS = [(case, way) for case in CASES for way in WAYS if way != "alone" or case in ALONE]


class Row(NamedTuple):
    case: str
    model: CausalLM
    answers: list[Generated]


@pytest.fixture(scope="module")
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Row:
    case = request.param
    path = save_tiny(case, tmp_path_factory.mktemp(case))
    model = load_model(path, device=torch.device("cpu"), dtype="float32")
    reference = build_tiny(case)
    return Row(case, model, [generate(reference, prompt, NUM_TOKENS) for prompt in PROMPTS])


def assert_equal(runs: list[Run], answers: list[Generated]) -> None:
    for run, answer in zip(runs, answers, strict=True):
        assert run.output == answer.token_ids
        difference = (torch.stack(run.logits) - answer.logits).abs().max()
        assert difference <= TOLERANCE, f"prompt of {len(run.prompt)}: logits differ {difference}"


@pytest.mark.parametrize(("row", "way"), ROWS, indirect=["row"], scope="module")
def test_the_tokens_are_those_of_transformers(row: Row, way: str) -> None:
    assert_equal(WAYS[way](Harness(row.model), PROMPTS, NUM_TOKENS), row.answers)


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
    assert_equal(runs, [generate(reference, prompt, NUM_TOKENS) for prompt in PROMPTS])
