from __future__ import annotations

import base64
import json
from pathlib import Path

from axion.engine.eos_tokens import eos_token_ids


def test_eos_is_the_union_of_all_that_name_one(tmp_path: Path) -> None:
    def write(name: str, value: object) -> None:
        (tmp_path / name).write_text(json.dumps(value))

    assert eos_token_ids(tmp_path) == ()
    write("config.json", {"eos_token_id": 5})
    assert eos_token_ids(tmp_path) == (5,)
    write("generation_config.json", {"eos_token_id": [5, 3]})
    assert eos_token_ids(tmp_path) == (3, 5)
    write("tokenizer_config.json", {"eos_token": {"content": "<end>"}})
    write(
        "tokenizer.json",
        {"added_tokens": [{"id": 9, "content": "<end>"}, {"id": 8, "content": "<x>"}]},
    )
    assert eos_token_ids(tmp_path) == (3, 5, 9)
    write("config.json", {"eos_token_id": None})
    write("generation_config.json", {})
    assert eos_token_ids(tmp_path) == (9,)
    write("config.json", {"eos_token_id": 5, "text_config": {"eos_token_id": [6, 7]}})
    assert eos_token_ids(tmp_path) == (5, 6, 7, 9)


def test_a_tokenizer_of_another_format_names_the_end_too(tmp_path: Path) -> None:
    ranks = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (tmp_path / "qwen.tiktoken").write_text("".join(ranks))
    assert eos_token_ids(tmp_path) == (256,)
