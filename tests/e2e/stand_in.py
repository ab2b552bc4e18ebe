"""Stands in for vLLM where a test needs two engines that give equal tokens.

It takes the command line of `vllm serve` and serves the model by the native engine. A shell script
that runs it is what `AXION_VLLM_COMMAND` names: see `write_command`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path


def write_command(folder: Path, start_s: float = 0) -> Path:
    """The executable.

    Args:
        start_s: seconds that it takes longer to start.
    """
    path = folder / "vllm"
    here = Path(__file__).resolve()
    # An engine gets no PYTHONPATH from Axion.
    path.write_text(
        f"#!/bin/sh\nexport START_S={start_s} PYTHONPATH={here.parents[2]}\n"
        f'exec {sys.executable} {here} "$@"\n'
    )
    path.chmod(0o755)
    return path


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print("0.32.0")
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    variables = {
        "--served-model-name": "SERVED_MODEL_NAME",
        "--host": "SERVER_HOST",
        "--port": "SERVER_PORT",
        "--max-model-len": "MAX_SEQ_LEN",
        "--max-num-seqs": "CONCURRENT_REQUESTS",
        "--dtype": "DTYPE",
    }
    for flag, variable in variables.items():
        parser.add_argument(flag, dest=variable, required=True)
    given, _ = parser.parse_known_args()
    environment = {name: getattr(given, name) for name in variables.values()}
    environment |= {"MODEL_NAME": given.model, "AXION_BACKENDS": "native", "SHADOW": ""}
    os.environ.update(environment, MAX_CONNECTIONS="1000")
    time.sleep(float(os.environ["START_S"]))
    os.execv(sys.executable, [sys.executable, "-m", "axion"])


if __name__ == "__main__":
    main()
