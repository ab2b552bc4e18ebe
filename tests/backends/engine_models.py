"""Small model folders for tests of engines that only look at them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

HERMES = "{% if tools %}<tool_call>{{ tools }}{% endif %}{{ messages }}"
QWEN3 = HERMES + "{% if enable_thinking %}<think></think>{% endif %}"


def write_model(folder: Path, *, template: str = "", num_bytes: int = 8, **config: Any) -> Path:
    """A model folder with a config, a template and weights that nothing can load."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"architectures": ["LlamaForCausalLM"], "head_dim": 64, **config}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text("{}")
    if template:
        (folder / "chat_template.jinja").write_text(template)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(num_bytes)
    return folder


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    """The header of a GGUF file with the architecture's name."""
    key, name = b"general.architecture", architecture.encode()
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(name)) + name
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + entry)
    return path


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
