"""From the command to an answer: time to listening, to ready and to the first token.

    python benchmarks/startup.py [--model axion/demo] [--rounds 3]

Starts `python -m axion` as a user would, on a free port, and asks as soon as it answers.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import time

import httpx
import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(
    client: httpx.Client, path: str, statuses: set[int], process, pause_s: float = 0.005
) -> None:
    while process.poll() is None:
        try:
            if client.get(path).status_code in statuses:
                return
        except httpx.TransportError:
            pass
        time.sleep(pause_s)
    raise SystemExit(f"the server ended with status {process.returncode}")


def measure(model: str) -> dict[str, float]:
    port = free_port()
    environment = {
        **os.environ,
        "MODEL_NAME": model,
        "SERVER_HOST": "127.0.0.1",
        "SERVER_PORT": str(port),
        "AXION_LOG": "warning",
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "axion"], env=environment, stdout=subprocess.DEVNULL
    )
    result = {}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until(client, "/health/live", {200}, process)
            result["listening s"] = time.perf_counter() - start
            wait_until(client, "/health/ready", {200}, process)
            result["ready s"] = time.perf_counter() - start
            body = {
                "model": model,
                "stream": True,
                "max_tokens": 16,  # random weights have no end
                "messages": [{"role": "user", "content": "Hello!"}],
            }
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                lines = response.iter_lines()
                next(lines)
                result["first token s"] = time.perf_counter() - start
                for _ in lines:
                    pass
            api = psutil.Process(process.pid)
            result["API process MiB"] = api.memory_info().rss / 2**20
            [worker] = (c for c in api.children() if "axion.engine.process" in c.cmdline())
            result["engine process MiB"] = worker.memory_info().rss / 2**20
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="axion/demo")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    results = [measure(args.model) for _ in range(args.rounds)]
    for name in results[0]:
        print(f"{name:20} {statistics.median(result[name] for result in results):8.2f}")


if __name__ == "__main__":
    main()
