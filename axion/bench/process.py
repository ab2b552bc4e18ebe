"""`python -m axion.bench.process`: one request on stdin, progress and the answer on stdout, each
as a line of JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from axion.bench.messages import (
    Answer,
    Failed,
    Made,
    MakeShape,
    MeasureEngine,
    Progress,
    Request,
)
from axion.errors import AxionError


def main() -> None:
    # What libraries print must not come between the messages.
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)

        def send(message: Progress | Answer) -> None:
            out.write(msgspec.json.encode(message) + b"\n")

        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        send(answer(request, send))


def answer(request: Request, send: Callable[[Progress], None]) -> Answer:
    """What was asked for, or why it cannot be had."""
    try:
        if isinstance(request, MakeShape):
            from axion.bench.checkpoint import make_shape
            from axion.bench.shapes import shape_config

            make_shape(
                shape_config(request.shape),
                Path(request.folder),
                lambda done, total: send(Progress("Writing the weights", done, total)),
            )
            return Made()
        from axion.bench.engine import measure, profile_engine

        if isinstance(request, MeasureEngine):
            return measure(request, send)
        return profile_engine(request, send)
    except AxionError as error:
        return Failed(error.message)


if __name__ == "__main__":
    main()
