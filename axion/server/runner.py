"""Listen at once, load the models in the background, drain before the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.applications import Starlette

from axion.server.protocol import BoundedHttpProtocol
from axion.server.state import ServerState

logger = logging.getLogger("axion.server")

# Seconds. Longer than the 60 s of common proxies, so that the idle connection is theirs to close.
KEEP_ALIVE_S = 75
# For the last bytes of answers, and for engines to end, after the drain.
FLUSH_TIMEOUT_S = 5
STOP_GRACE_S = 15.0


class Server(uvicorn.Server):
    """uvicorn, told what to do rather than catching signals itself."""

    def __init__(self, app: Starlette, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=FLUSH_TIMEOUT_S,
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Of a request that is cut off at the end uvicorn says, with a traceback, that it failed."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


class _Signals:
    """The first SIGINT or SIGTERM asks for a drain, the second ends it."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.number = 0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take, number)

    def _take(self, number: int) -> None:
        self.number = number
        (self.second if self.first.is_set() else self.first).set()


async def run(
    app: Starlette,
    listener: socket.socket,
    tls: ssl.SSLContext | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Serve `app` until a signal ends it; its models are loaded meanwhile.

    Returns:
        The exit status: 0 after a drain, 128 + the signal's number if a second one cut it short.

    Raises:
        AxionError: a model could not be loaded; everything has been stopped.
    """
    state: ServerState = app.state.server
    signals = _Signals()
    server = Server(app, tls)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = asyncio.create_task(state.registry.start())
    stopping = asyncio.create_task(signals.first.wait())
    try:
        await asyncio.wait((loading, stopping, serving), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            await loading
            _freeze_heap()
            on_ready()
        await asyncio.wait((stopping, serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        state.draining = True
        if signals.first.is_set():
            _say_what_is_awaited(state.num_in_flight, state.settings.drain_timeout_s)
        stopping.cancel()
        loading.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await loading
        await _drain(state, state.settings.drain_timeout_s, signals)
        server.should_exit = True
        server.force_exit = signals.second.is_set()
        await serving
    return 128 + signals.number if signals.second.is_set() else 0


def _say_what_is_awaited(num_in_flight: int, drain_s: float) -> None:
    if num_in_flight:
        logger.info(
            "shutting down; requests in flight: %d, which have %g s to finish. "
            "Another Ctrl-C or SIGTERM ends them now.",
            num_in_flight,
            drain_s,
        )
    else:
        logger.info("shutting down")


def _freeze_heap() -> None:
    """Take what is there for good, mostly modules, out of all later garbage collections: going
    through it would hold every stream for tens of milliseconds."""
    gc.collect()
    gc.freeze()


async def _drain(state: ServerState, drain_s: float, signals: _Signals) -> None:
    """Stop the models; their running requests have `drain_s` seconds, or until a second signal."""
    draining = asyncio.create_task(state.stop(drain_s))
    cut = asyncio.create_task(signals.second.wait())
    await asyncio.wait(
        (draining, cut), timeout=drain_s + STOP_GRACE_S, return_when=asyncio.FIRST_COMPLETED
    )
    cut.cancel()
    if signals.second.is_set():
        logger.warning("ending at once; requests that are cut off: %d", state.num_in_flight)
    if not draining.done():
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining
        with suppress(TimeoutError):
            await asyncio.wait_for(state.stop(0), FLUSH_TIMEOUT_S)
    else:
        await draining
