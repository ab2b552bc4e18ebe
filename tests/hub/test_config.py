from __future__ import annotations

from pathlib import Path

import pytest

from axion.errors import ModelLoadError
from axion.hub.config import MAX_CONFIG_BYTES, load_config


def write(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    return folder


def test_config_is_the_object_in_the_file(tmp_path: Path) -> None:
    # Configs of real models hold Infinity, which is Python's JSON and not the standard's.
    text = '{"architectures": ["LlamaForCausalLM"], "limit": [0.0, Infinity]}'
    config = load_config(write(tmp_path, text))
    assert config == {"architectures": ["LlamaForCausalLM"], "limit": [0.0, float("inf")]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"n": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\udc80".encode("utf-8", "surrogateescape").decode("latin-1"), "not valid JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("{}", "names no architecture"),
        ('{"architectures": []}', "names no architecture"),
        ('{"architectures": "LlamaForCausalLM"}', "names no architecture"),
        ('{"architectures": [1]}', "names no architecture"),
        (" " * (MAX_CONFIG_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_unusable_config_is_refused_with_its_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said) as caught:
        load_config(write(tmp_path, text))
    assert str(tmp_path) not in caught.value.message


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_config(tmp_path)
