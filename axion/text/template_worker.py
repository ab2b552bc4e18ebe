"""The process that renders chat templates, under limits that the kernel enforces.

A template comes with the model and is a program: it can loop for ever, and a single operation
on a few nested lists can hold the interpreter, out of reach of any thread, for hours. Here it
runs in transformers' sandbox, in a process that SIGALRM ends when a template takes too long and
that leaves by itself when the memory limit is met.

The file is run as a script (`BoundedProcess` starts it), so it imports nothing of Axion's. On
its standard input and output it speaks frames: a length of four bytes, then JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import IO, Any

OUT_OF_MEMORY = 3  # exit status

_LENGTH = struct.Struct(">I")


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read_frame(stream: IO[bytes], max_bytes: int | None = None) -> bytes:
    """The next frame.

    Raises:
        EOFError: the stream ended.
        OverflowError: the frame is longer than `max_bytes`.
    """
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    if max_bytes is not None and length > max_bytes:
        raise OverflowError
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


@cache
def _chat_template_utils() -> Any:
    """transformers' module for chat templates, without what else is imported with the package: that
    is most of the time that this process needs to start.
    """
    for name in ("transformers", "transformers.utils"):
        spec = find_spec(name)
        assert spec is not None
        sys.modules[name] = module_from_spec(spec)  # which is not executed
    return import_module("transformers.utils.chat_template_utils")


def describe(template: str) -> dict[str, Any]:
    """What a template reads, learned from its syntax tree.

    Raises:
        jinja2.TemplateSyntaxError: it is not a template.
    """
    from jinja2 import meta, nodes

    environment = _chat_template_utils()._compile_jinja_template(template).environment
    tree = environment.parse(template)
    variables = meta.find_undeclared_variables(tree) - environment.globals.keys()
    tests = {test.name for test in tree.find_all(nodes.Test)}
    return {
        "variables": sorted(variables),
        "reads_parts": _loops_over_content(tree),
        "joins_arguments": _joins_arguments(tree),
        "reads_strings": bool(tests & {"string", "iterable", "mapping", "sequence"}),
    }


def _loops_over_content(tree: Any) -> bool:
    """Whether a template goes through the parts of a message's content one by one.

    That is a `for` over `message.content` or `message["content"]`, perhaps filtered, or over a
    variable that was set to it, or over a macro's parameter of that name.
    """
    from jinja2 import nodes

    def is_content(node: Any) -> bool:
        if isinstance(node, nodes.Filter):
            return is_content(node.node)
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
        if isinstance(node, nodes.Getattr):
            return bool(node.attr == "content")
        return isinstance(node, nodes.Name) and node.name in names

    names: set[str] = set()
    names |= {
        parameter.name
        for macro in tree.find_all(nodes.Macro)
        for parameter in macro.args
        if parameter.name == "content"
    }
    names |= {
        assignment.target.name
        for assignment in tree.find_all(nodes.Assign)
        if isinstance(assignment.target, nodes.Name) and is_content(assignment.node)
    }
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _joins_arguments(tree: Any) -> bool:
    """Whether a template joins a call's arguments to text, without a look at what they are."""
    from jinja2 import nodes

    def is_arguments(node: Any) -> bool:
        if isinstance(node, nodes.Getitem):
            return isinstance(node.arg, nodes.Const) and node.arg.value == "arguments"
        return isinstance(node, nodes.Getattr) and node.attr == "arguments"

    if any(test.name == "string" and is_arguments(test.node) for test in tree.find_all(nodes.Test)):
        return False
    operands = [[node.left, node.right] for node in tree.find_all(nodes.Add)]
    operands += [node.nodes for node in tree.find_all(nodes.Concat)]
    return any(is_arguments(operand) for pair in operands for operand in pair)


def render(template: str, *, messages: list[dict[str, Any]], **arguments: Any) -> str:
    """The text of one conversation, as transformers' `apply_chat_template` renders it."""
    render_all = _chat_template_utils().render_jinja_template
    rendered, _ = render_all([messages], chat_template=template, **arguments)
    return str(rendered[0])


def _answer(data: bytes) -> bytes:
    return json.dumps(_reply(json.loads(data))).encode()


def _reply(request: dict[str, Any]) -> dict[str, Any]:
    from jinja2 import exceptions

    template, arguments = request["template"], request["arguments"]
    try:
        return {
            "result": describe(template) if arguments is None else render(template, **arguments)
        }
    except MemoryError:
        raise
    except exceptions.TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except exceptions.SecurityError as error:
        return {"error": "refused", "message": str(error)}
    except exceptions.TemplateError as error:
        return {"error": "failed", "message": str(error)}
    except Exception as error:  # whatever the template does wrong, its user has to read it
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"}


def _limit_memory(num_bytes: int) -> None:
    """Let the process grow by `num_bytes` from here."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[0])
        limit = pages * resource.getpagesize() + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def serve(
    begin: Callable[[], Callable[[bytes], bytes]], timeout_s: float, max_memory_bytes: int
) -> None:
    """Answer frames until the input ends, each within `timeout_s` seconds.

    Args:
        begin: loads what is needed, beyond which the memory is limited, and gives what answers.
    """
    # Nothing that a library prints may get between the frames.
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a server that ignores it passes that on

    answer = begin()
    _limit_memory(max_memory_bytes)
    write_frame(replies, b"ready")
    try:
        while True:
            request = read_frame(requests)
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            reply = answer(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            write_frame(replies, reply)
    except EOFError:
        return
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _begin() -> Callable[[bytes], bytes]:
    describe("")  # imports what there is to import
    return _answer


if __name__ == "__main__":
    serve(_begin, float(sys.argv[1]), int(sys.argv[2]))
