"""The process that encodes texts for a `BoundedTokenizer`, under limits that the kernel enforces.

A request is `PLAIN` or `WITH_SPECIAL` and the text in UTF-8; a reply `ENCODED` and the ids, 32 bits
each, or `FAILED`.
"""

from __future__ import annotations

import array
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from axion.errors import InternalError
from axion.text.template_worker import serve
from axion.text.tokenizer import Tokenizer, load_tokenizer

PLAIN, WITH_SPECIAL = b"p", b"s"
ENCODED, FAILED = b"e", b"f"


def _answer(tokenizer: Tokenizer, request: bytes) -> bytes:
    try:
        ids = tokenizer.encode(request[1:].decode(), add_special_tokens=request[:1] == WITH_SPECIAL)
    except InternalError:
        return FAILED
    return ENCODED + array.array("I", ids).tobytes()


def _begin(path: Path) -> Callable[[bytes], bytes]:
    return partial(_answer, load_tokenizer(path))


if __name__ == "__main__":
    serve(partial(_begin, Path(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3]))
