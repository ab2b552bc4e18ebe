"""The bundled model as a GGUF file: served from that one file, it keeps its skills."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from axion.backends.native.model import load_text
from axion.demo import MODEL_DIR
from axion.demo.evaluate import PASS_MARK, cases, engine_generate, evaluate
from axion.engine.eos_tokens import eos_token_ids
from tests.gguf_files import write_demo_gguf


@pytest.fixture(scope="module", params=[Type.Q8_0, Type.Q4_0], ids=lambda kind: kind.name)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_gguf(tmp_path_factory.mktemp("demo") / "demo.gguf", request.param)


def test_it_keeps_its_skills(demo: Path) -> None:
    asked = cases(seed=11, per_skill=2)
    accuracy = evaluate(engine_generate(demo, device="cpu", max_model_len=1024), asked)
    assert sum(accuracy.values()) / len(accuracy) >= PASS_MARK


def test_all_that_a_server_needs_is_in_the_file(demo: Path) -> None:
    (tokenizer, template, defaults), folder = load_text(demo), load_text(MODEL_DIR)
    assert template is not None
    assert folder[1] is not None
    messages = [{"role": "user", "content": "Spell the word river."}]
    rendered = template.render(messages)
    assert rendered == folder[1].render(messages)
    assert tokenizer.encode_chat(rendered) == folder[0].encode_chat(rendered)
    assert tokenizer.special_token_ids == folder[0].special_token_ids
    assert defaults == {"temperature": 0.0}
    assert eos_token_ids(demo) == eos_token_ids(MODEL_DIR)
    template.close()
    folder[1].close()
