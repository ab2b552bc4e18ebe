"""From the command to the first token, with a slow engine: covered by the native engine, or not.

    python benchmarks/cold_start.py [--start-s 60] [--engine max --model FOLDER [--cold]]

The slow engine is a stand-in for vLLM that takes --start-s seconds longer than it must; with
--engine a real one is started, found as `axion serve` finds it (`AXION_MAX_COMMAND`). The first run
waits for it (STANDBY=never), in the second the native engine answers until it is ready; then new
requests go to the slow engine, whose readiness is measured too. What an engine has compiled it
keeps: with --cold each run has empty caches, as on a machine that has never served the model.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from startup import free_port, wait_until

sys.path.append(str(Path(__file__).parents[1]))
from tests.e2e.stand_in import write_command


def first_token(client: httpx.Client) -> str:
    """Which engine has given it."""
    body = {"model": "model", "stream": True, "prompt": "Hello", "max_tokens": 4}
    with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        next(response.iter_lines())
        return response.headers["x-axion-backend"]


def measure(engine: str, **environment: str) -> None:
    port = free_port()
    given = {
        "SERVED_MODEL_NAME": "model",
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": str(port),
        "AXION_BACKENDS": f"{engine},native",
        "AXION_LOG": "error",
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "axion"],
        env={**os.environ, **given, **environment},
        stdout=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            wait_until(client, "/health/ready", {200}, process, pause_s=0.05)
            answered_by = first_token(client)
            print(
                f"  first token            {time.perf_counter() - start:7.1f} s  by {answered_by}"
            )
            while answered_by != engine:
                time.sleep(0.5)
                answered_by = first_token(client)
            print(f"  first token by {engine:8}{time.perf_counter() - start:7.1f} s")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def empty_caches(folder: Path) -> dict[str, str]:
    """Places for what Axion, vLLM (XDG_CACHE_HOME) and MAX keep; the Hub's files stay."""
    hub = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    return {
        "XDG_CACHE_HOME": str(folder),
        "MODULAR_CACHE_DIR": str(folder / "modular"),
        "HF_HOME": hub,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start-s", type=float, default=60.0, help="of the stand-in, in seconds")
    parser.add_argument("--engine", help="a real one (default: a stand-in for vllm)")
    parser.add_argument("--model", default="axion/demo", help="id or folder")
    parser.add_argument("--cold", action="store_true", help="empty caches for each run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        shared = {"MODEL_NAME": arguments.model}
        if arguments.engine is None:
            command = write_command(Path(place), start_s=arguments.start_s)
            shared |= {"AXION_VLLM_COMMAND": str(command), "XDG_CACHE_HOME": place}
        for title, standby in (("waiting for it", "never"), ("covered", "start")):
            print(title)
            if arguments.cold:
                shared |= empty_caches(Path(place, standby))
            measure(arguments.engine or "vllm", STANDBY=standby, **shared)


if __name__ == "__main__":
    main()
