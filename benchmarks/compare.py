"""Axion beside other servers, on one checkpoint, in alternation, over HTTP: figures and ratios.

    python benchmarks/compare.py --shape llama-3.2-1b [--peers axion,vllm] [--rounds 3] [-o FILE]

Peers are in `peers.py`; `peers.sh` installs them, and one that is not here is left out, which is
said. Servers with weights of the same format are compared: in each round they are measured one
after the other. Each is started in its first turn, and the others are stopped meanwhile (SIGSTOP),
so that nothing runs beside the one that is measured and none is loaded twice. With --restart each
is started anew for every turn instead: that takes longer, needs the memory of one, and gives the
start a median too. What takes a server longer than a minute is measured in the first round only.

`generate` is transformers' own function, in a process of its own, which gets all prompts of a batch
at once: its best case. `the machine` is what `roofline.py` finds before: no prompt without the
products of its layers, no token without reading the weights, nor without its own products.

A ratio says how many times better Axion is than the other, with weights of the same format.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from gguf_file import make_gguf
from peers import PEERS, Peer, find
from roofline import FORMATS

from axion.backends import guard
from axion.bench.checkpoint import make_shape
from axion.bench.client import BenchError, Target
from axion.bench.limits import matrix_rates, num_weights, read_rate
from axion.bench.load import Load, run
from axion.bench.report import Figures, figures
from axion.bench.shapes import shape_config, shape_folder, shapes
from axion.bench.workload import Kind, Planned, Range
from axion.engine.loader import build_model

GRACE_S = 20.0
START_TIMEOUT_S = 900.0
REQUEST_TIMEOUT_S = 300.0
SLOW_S = 60.0
MACHINE = "the machine"


class Row(NamedTuple):
    """One thing that is measured.

    Attributes:
        figure: `decode` (tokens a second of a stream after its first), `output` (tokens a second
            of all streams, from the beginning), `ttft`, `start` or `memory`.
        streams: requests at once, in one wave.
    """

    title: str
    figure: str
    streams: int = 1
    prompt_len: int = 8
    output_len: int = 2

    @property
    def more_is_better(self) -> bool:
        return self.figure in ("decode", "output")


ROWS = {
    "start": Row("command to first token, s", "start"),
    "memory": Row("resident beyond weights, MB", "memory"),
    "1": Row("1 stream: decode tokens/s", "decode", 1, 128, 64),
    "8": Row("8 streams: output tokens/s", "output", 8, 128, 64),
    "32": Row("32 streams: output tokens/s", "output", 32, 128, 64),
    "prompt": Row("first token of 1,024, s", "ttft", 1, 1024, 2),
}


class Server:
    """A peer's processes, under a guard that ends all of them, whatever becomes of this program.

    Attributes:
        start_s: from the command to the first token.
        memory: resident bytes then, without the weights' file; None: it holds something else.
    """

    def __init__(self, peer: Peer, model: Path, *, slots: int, length: int, threads: int) -> None:
        self.peer = peer
        self.start_s = 0.0
        self.memory: float | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        places = {
            "here": Path(__file__).parent,
            "model": model,
            "port": port,
            "slots": slots,
            "length": length,
            "tokens": slots * length,
            "threads": threads,
            "last_core": threads - 1,
        }
        executable, *words = peer.command.split()
        command = [str(find(executable)), *(word.format(**places) for word in words)]
        env = {name: value.format(**places) for name, value in peer.env.items()}
        common = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if executable != "python":
            common.pop("PYTHONPATH", None)  # it is meant for this Python
        self._model = model
        self._target = Target(f"http://127.0.0.1:{port}", peer.served_as.format(**places))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._began = time.perf_counter()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(GRACE_S), *command],
            env={**common, **env},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    async def start(self) -> None:
        """Wait for its first token, and get to know it.

        Raises:
            BenchError: it does not start, or does not speak the API.
        """
        while True:
            if (status := self._guard.poll()) is not None:
                raise BenchError(f"it ended with status {status}: {self._last_words()}")
            if time.perf_counter() - self._began > START_TIMEOUT_S:
                raise BenchError(f"it is not ready after {START_TIMEOUT_S:.0f} s")
            with contextlib.suppress(BenchError):
                await self._target.get_text(self.peer.health)
                break
            await asyncio.sleep(0.02)
        sample = await self._target.ask(Planned(0, 8, 1, 0, 0))
        if sample.error is not None:
            raise BenchError(sample.error)
        self.start_s = time.perf_counter() - self._began
        if self.peer.file != "safetensors" or self.peer.weights == "bf16":
            path = self._model
            files = path.glob("*.safetensors") if path.is_dir() else [path]
            resident = sum(process.memory_full_info().pss for process in self._processes())
            self.memory = resident - sum(file.stat().st_size for file in files)
        await self._target.prepare()

    async def measure(self, row: Row, seed: int) -> float | None:
        """None: it is not known.

        Raises:
            BenchError: a request failed.
        """
        if row.figure == "start":
            return self.start_s
        if row.figure == "memory":
            return None if self.memory is None else self.memory / 1e6
        kind = Kind(Range(row.prompt_len, row.prompt_len), Range(row.output_len, row.output_len))
        load = Load(
            kinds=(kind,),
            num_requests=row.streams,
            concurrency=row.streams,
            seed=seed,
            timeout_s=REQUEST_TIMEOUT_S,
        )
        found = figures(await run(self._target, load), concurrency=row.streams)
        if found.num_failed:
            raise BenchError(next(iter(found.errors)))
        return value_of(row, found)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def close(self) -> None:
        """End all of its processes, and wait until they have ended."""
        await self._target.close()
        self.resume()
        self._guard.terminate()
        self._guard.wait()
        self._log.close()

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self._guard.pid).children(recursive=True)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-600:]


def value_of(row: Row, found: Figures) -> float:
    """The figure of a row, of answers that all came."""
    if row.figure == "output":
        return found.output_tokens_per_s
    spread = found.tpot if row.figure == "decode" else found.ttft
    if spread is None:
        raise BenchError("the answers have no tokens")
    return 1 / spread.p50 if row.figure == "decode" else spread.p50


# By the name of a server and the title of a row.
Values = dict[str, dict[str, list[float]]]


async def compare(
    peers: list[Peer], models: dict[str, Path], rows: list[Row], arguments: argparse.Namespace
) -> Values:
    """The values of each peer in each row, one a round; a peer that fails is left out."""
    threads = arguments.threads
    streams = max(row.streams for row in rows)
    # With room for the chat template, and at least for what `Target.prepare` asks.
    length = max(384, *(row.prompt_len + row.output_len for row in rows)) + 128
    values: Values = {peer.name: {row.title: [] for row in rows} for peer in peers}
    servers: dict[str, Server] = {}
    slow: set[tuple[str, Row]] = set()

    async def turn(peer: Peer, seed: int) -> None:
        server = servers.get(peer.name)
        if server is None:
            say(f"{peer.name}: starting")
            server = servers[peer.name] = Server(
                peer, models[peer.file], slots=streams, length=length, threads=threads
            )
            await server.start()
        server.resume()
        for row in rows:
            if row.streams > peer.max_streams or (peer.name, row) in slow:
                continue
            began = time.perf_counter()
            value = await server.measure(row, seed)
            if time.perf_counter() - began > SLOW_S:
                slow.add((peer.name, row))
            if value is not None:
                values[peer.name][row.title].append(value)
                say(f"{peer.name}: {row.title}: {value:.4g}")

    try:
        for number in range(arguments.rounds):
            for peer in list(peers):
                try:
                    await turn(peer, number)
                    if arguments.restart:
                        await servers.pop(peer.name).close()
                    else:
                        servers[peer.name].pause()
                except (BenchError, psutil.Error) as error:
                    print(f"{peer.name} is left out: {error}", flush=True)
                    peers.remove(peer)
                    del values[peer.name]
                    await servers.pop(peer.name).close()
    finally:
        for server in servers.values():
            await server.close()
    return values


def limits(config: dict[str, Any], rows: list[Row], threads: int) -> Values:
    """The values that the machine itself allows, by the format of the weights."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    weights = num_weights(build_model(config))
    assert weights is not None
    read = max(read_rate(device, huge_pages=huge) for huge in (False, True))
    rates = matrix_rates(device)
    found: Values = {}
    for name, (kind, num_bytes) in FORMATS.items():
        values = found[name] = {row.title: [] for row in rows}
        for row in rows:
            step = num_bytes * weights.read / read
            if row.figure == "decode":
                values[row.title] = [1 / step]
            if kind not in rates:
                continue
            prompts = 2 * weights.layers * row.streams * row.prompt_len / rates[kind]
            if row.figure == "ttft":
                values[row.title] = [prompts]
            elif row.figure == "output":
                step = max(step, 2 * weights.read * row.streams / rates[kind])
                num_tokens = row.streams * row.output_len
                values[row.title] = [num_tokens / (prompts + (row.output_len - 1) * step)]
    return found


def table(lines: list[tuple[str, str, dict[str, list[float]]]], rows: list[Row]) -> str:
    """Medians, each with how many times better Axion is, as Markdown.

    Args:
        lines: format of the weights, who, and the values in each row.
    """
    titles = ["weights", "server", *(row.title for row in rows)]
    text = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    ours = {weights: values for weights, name, values in lines if name.startswith("axion")}
    for weights, name, values in lines:
        cells = []
        for row in rows:
            found, own = values[row.title], ours.get(weights, {}).get(row.title)
            cell = f"{statistics.median(found):.4g}" if found else "-"
            if found and own and not name.startswith("axion"):
                cell += f" ({ratio(row, statistics.median(own), statistics.median(found)):.2f})"
            cells.append(cell)
        text.append(f"| {weights} | {name} | {' | '.join(cells)} |")
    return "\n".join(text)


def ratio(row: Row, own: float, other: float) -> float:
    return own / other if row.more_is_better else other / own


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def find_models(arguments: argparse.Namespace, files: set[str]) -> dict[str, Path]:
    """The checkpoint in each format that is needed; a GGUF that cannot be made is not there."""
    if arguments.shape:
        folder = shape_folder(arguments.shape)
        make_shape(shape_config(arguments.shape), folder)
    else:
        folder = Path(arguments.model).resolve()
    models = {"safetensors": folder}
    for kind in sorted(files - {"safetensors"}):
        try:
            say(f"making the {kind} file, unless it is there")
            models[kind] = make_gguf(folder, kind, find("llama-quantize"))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"There is no {kind} file: {error}", flush=True)
    return models


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=shapes())
    parser.add_argument("--model", help="folder of a checkpoint in bfloat16, as a shape has it")
    parser.add_argument("--peers", help="names with commas between (default: all that are here)")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--restart", action="store_true", help="start each server anew each time")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-o", "--output", type=Path, help="write all values there, as JSON")
    arguments = parser.parse_args()
    if (arguments.shape is None) == (arguments.model is None):
        parser.error("give either --shape or --model")
    # Ended from outside it ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wanted = arguments.peers.split(",") if arguments.peers else [peer.name for peer in PEERS]
    rows = [ROWS[name] for name in arguments.rows.split(",")]
    peers = []
    for name in wanted:
        peer = next(peer for peer in PEERS if peer.name == name)
        if find(peer.command.split()[0]) is None:
            print(f"{name} is left out: {peer.command.split()[0]} is not installed", flush=True)
        else:
            peers.append(peer)
    models = find_models(arguments, {peer.file for peer in peers})
    peers = [peer for peer in peers if peer.file in models]
    config = json.loads((models["safetensors"] / "config.json").read_text())
    say("measuring the machine")
    machine = limits(config, rows, arguments.threads)
    values: Values = {}
    lines = []
    for weights in dict.fromkeys(peer.weights for peer in peers):
        group = [peer for peer in peers if peer.weights == weights]
        values |= asyncio.run(compare(group, models, rows, arguments))
        lines += [(weights, peer.name, values[peer.name]) for peer in group]
        lines.append((weights, MACHINE, machine[weights]))
    name = arguments.shape or arguments.model
    print(f"\n{name}, median of {arguments.rounds}, in brackets how many times better Axion is\n")
    print(table(lines, rows))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
