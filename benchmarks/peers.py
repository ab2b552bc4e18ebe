"""The servers that `compare.py` measures: what starts each of them, and what it is given.

In a command `{here}` is this folder, `{model}` the checkpoint in the peer's format, `{port}` a free
port, `{slots}` the requests at once, `{length}` the tokens of one, `{tokens}` those of all,
`{threads}` the cores and `{last_core}` the number of the last. An executable is looked for in
`$AXION_PEERS_DIR/bin` (`peers.sh` puts it there), then on the PATH.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Peer(NamedTuple):
    """
    Attributes:
        weights: the number format that it computes with; Axion in the same one is what it is
            compared with.
        command: its first word is the executable.
        health: the path that answers 200 when it is ready.
        file: `safetensors`, or a type of GGUF (`BF16`, `Q8_0`, `Q4_0`).
        served_as: the name under which it serves the model.
        max_streams: more at once are not measured.
    """

    name: str
    weights: str
    command: str
    health: str = "/health"
    env: Mapping[str, str] = MappingProxyType({})
    file: str = "safetensors"
    served_as: str = "bench"
    max_streams: int = 32


def find(executable: str) -> str | None:
    """Its path; None: it is not installed."""
    if executable == "python":
        return sys.executable
    root = Path(os.environ.get("AXION_PEERS_DIR") or "~/.cache/axion/peers").expanduser()
    return shutil.which(executable, path=root / "bin") or shutil.which(executable)


AXION = {
    "MODEL_NAME": "{model}",
    "SERVED_MODEL_NAME": "bench",
    "SERVER_HOST": "127.0.0.1",
    "SERVER_PORT": "{port}",
    "AXION_BACKENDS": "native",
    "CONCURRENT_REQUESTS": "{slots}",
    "MAX_SEQ_LEN": "{length}",
    "AXION_LOG": "warning",
}
VLLM = (
    "vllm serve {model} --served-model-name bench --host 127.0.0.1 --port {port} "
    "--max-model-len {length} --max-num-seqs {slots} --dtype bfloat16"
)
LLAMA = (
    "llama-server -m {model} --alias bench --host 127.0.0.1 --port {port} "
    "-np {slots} -c {tokens} -t {threads} --cache-ram 0 --no-webui"
)
MISTRALRS = "mistralrs-python {here}/mistralrs_server.py {model} --port {port} --slots {slots}"
TRANSFORMERS = (
    "transformers serve {model} --host 127.0.0.1 --port {port} --dtype bfloat16 --device cpu "
    "--continuous-batching --cb-num-blocks 256 --cb-max-batch-tokens 512"
)

PEERS = (
    Peer("axion", "bf16", "python -m axion", "/health/ready", {**AXION, "DTYPE": "bfloat16"}),
    Peer(
        "vllm",
        "bf16",
        VLLM,
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0-{last_core}"},
    ),
    Peer("llama.cpp", "bf16", LLAMA, file="BF16"),
    Peer("mistralrs", "bf16", MISTRALRS),
    Peer("transformers-serve", "bf16", TRANSFORMERS, served_as="{model}"),
    Peer("generate", "bf16", "python {here}/generate_server.py {model} --port {port}"),
    Peer(
        "axion-int8", "int8", "python -m axion", "/health/ready", {**AXION, "QUANTIZATION": "int8"}
    ),
    Peer("llama.cpp-q8", "int8", LLAMA, file="Q8_0"),
    Peer("mistralrs-q8", "int8", MISTRALRS + " --isq Q8_0"),
    Peer(
        "axion-int4",
        "int4",
        "python -m axion",
        "/health/ready",
        {**AXION, "QUANTIZATION": "int4"},
        max_streams=1,
    ),
    Peer("llama.cpp-q4", "int4", LLAMA, file="Q4_0", max_streams=1),
)
