"""`axion serve` as users run it, with the echo engine: `python -m tests.server.echo_server ARGS`.

`ECHO_TOKEN_DELAY_S` is the time of one step; `ECHO_LOAD_S` is how long the model takes to load;
`ECHO_FLUSH_S` is how long the server waits, at its end, for what holds it; with `ECHO_GOES_ON` the
engine ends no answer when it is stopped.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from axion.backends.base import InferenceBackend
from axion.backends.native.backend import NativeBackend
from axion.cli import main
from axion.server import runner
from axion.types import EngineConfig
from tests.echo_engine import EchoEngine


class EndlessEngine(EchoEngine):
    async def stop(self, drain_s: float) -> None:
        await asyncio.sleep(drain_s)


async def start_echo(config: EngineConfig) -> EchoEngine:
    await asyncio.sleep(float(os.environ.get("ECHO_LOAD_S", "0")))
    kind = EndlessEngine if "ECHO_GOES_ON" in os.environ else EchoEngine
    return kind(
        max_model_len=config.max_model_len,
        token_delay_s=float(os.environ.get("ECHO_TOKEN_DELAY_S", "0")),
    )


def from_settings(settings: Any, on_progress: Any) -> InferenceBackend:
    return NativeBackend(start_echo)


if __name__ == "__main__":
    os.environ.setdefault("AXION_BACKENDS", "native")
    setattr(NativeBackend, "from_settings", staticmethod(from_settings))  # noqa: B010
    runner.FLUSH_TIMEOUT_S = int(os.environ.get("ECHO_FLUSH_S", runner.FLUSH_TIMEOUT_S))
    main.main(["serve", *sys.argv[1:]])
