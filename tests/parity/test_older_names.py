"""Architectures that transformers has no class for compute what a class of it under another name
computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axion.engine.loader import load_model
from axion.parity import tiny
from axion.parity.harness import Harness, Run
from tests.parity.catalog import next_logits, small_config
from tests.parity.older_names import OLDER_NAMES, store_as


@pytest.mark.parametrize("architecture", OLDER_NAMES)
def test_it_answers_what_its_sibling_answers(architecture: str, tmp_path: Path) -> None:
    reference = tiny.build(small_config(architecture))
    reference.save_pretrained(tmp_path)
    store_as(architecture, tmp_path)
    model = load_model(tmp_path, device=torch.device("cpu"), dtype="float32")
    run = Run(tiny.random_prompts()[0])
    Harness(model).generate([run], 16)
    expected = next_logits(reference, run)
    assert (torch.stack(run.logits) - expected).abs().max() <= 1e-4
    assert run.output == expected.argmax(-1).tolist()
