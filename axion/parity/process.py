"""`python -m axion.parity.process`: one request on stdin, one answer on stdout, as JSON."""

from __future__ import annotations

import sys

import msgspec

from axion.errors import AxionError
from axion.parity.messages import Answer, CompareRequest, Failed, NewModelRequest, Request


def main() -> None:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(answer(request)))


def answer(request: CompareRequest | NewModelRequest) -> Answer:
    """What is found out, or why it cannot be."""
    try:
        if isinstance(request, CompareRequest):
            from axion.parity.compare import compare

            report: Answer = compare(request)
            return report
        from axion.parity.new_model import write

        written: Answer = write(request)
        return written
    except AxionError as error:
        return Failed(error.message)


if __name__ == "__main__":
    main()
