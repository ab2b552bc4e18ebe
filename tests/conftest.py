"""Models that the tests build on the spot; nothing is downloaded.

The process that gives xdist's workers their tests imports this file too, so torch is imported where
a model is made.
"""

from __future__ import annotations

import os

# Before huggingface_hub is imported anywhere: no test reaches a hub by accident.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny models gain nothing from threads, and lose much where another process holds a core.
os.environ["OMP_NUM_THREADS"] = "1"

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.tiny_model import save_tiny_model

# How long an example takes is the machine's affair: others may hold its cores.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _levels_of_the_log() -> Iterator[None]:
    """What a command sets in this process is not left to other tests."""
    loggers = {
        logger: logger.level
        for name, logger in logging.root.manager.loggerDict.items()
        if name.partition(".")[0] == "axion" and isinstance(logger, logging.Logger)
    }
    yield
    for logger, level in loggers.items():
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _the_process_is_left_as_it_was() -> Iterator[None]:
    """Other tests run in it, and other ones in every run."""
    folder = os.getcwd()
    yield
    assert os.getcwd() == folder, "the test leaves another working folder"
    if (torch := sys.modules.get("torch")) is not None:
        assert torch.get_num_threads() == 1, "the test leaves torch with more threads"
    kernels = sys.modules.get("axion.layers.cpu_kernels")
    if kernels is not None and kernels._given_up:
        assert not kernels._have_worked(), "the test leaves kernels given up that work"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama with tokenizer and chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX folder of all-MiniLM-L6-v2, a real embedding model."""
    from tests.onnx_models import save_sentence_model

    return save_sentence_model(tmp_path_factory.mktemp("models") / "minilm")


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX folder of a tiny random cross-encoder."""
    from tests.onnx_models import save_cross_encoder

    return save_cross_encoder(tmp_path_factory.mktemp("models") / "cross")
