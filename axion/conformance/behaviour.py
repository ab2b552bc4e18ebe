"""What a server does beside the fields of a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from axion.conformance.probe import Probe
from axion.conformance.server import FaultError, RefusedError, error_of

_FREE_WITHIN_S = 30.0
_POLL_S = 0.05
_RUNNING = re.compile(
    r"^\w[\w:]*(?:requests?_running|running_sequences|requests_processing|num_running_reqs)\S*\s+(\S+)$",
    re.MULTILINE,
)


class Observation(NamedTuple):
    """What a server does: a word or two, and how that shows."""

    result: str
    evidence: str


BEHAVIOURS: dict[str, Callable[[Probe], Awaitable[Observation]]] = {}
_Function = Callable[[Probe], Awaitable[Observation]]


def behaviour(name: str) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        BEHAVIOURS[name] = function
        return function

    return register


@behaviour("unknown field")
async def unknown_field(probe: Probe) -> Observation:
    response = await probe.server.post(probe.path, probe.body(max_tokens=2, frobnicate=1))
    message, _ = error_of(response.text)
    if response.is_success:
        return Observation("ignored", "200")
    names = "names it" if "frobnicate" in message else "does not name it"
    return Observation("refused", f"{response.status_code}, {names}")


@behaviour("wrong model")
async def wrong_model(probe: Probe) -> Observation:
    response = await probe.server.post(probe.path, probe.body(max_tokens=2, model="no/such-model"))
    return _status(response.status_code, 404)


@behaviour("malformed JSON")
async def malformed_json(probe: Probe) -> Observation:
    response = await probe.server.post(probe.path, b'{"model": ')
    return _status(response.status_code, 400)


@behaviour("value out of range")
async def value_out_of_range(probe: Probe) -> Observation:
    response = await probe.server.post(probe.path, probe.body(max_tokens=2, top_p=-1.5))
    return _status(response.status_code, 400)


@behaviour("error body")
async def error_body(probe: Probe) -> Observation:
    response = await probe.server.post(probe.path, b'{"model": ')
    try:
        error = json.loads(response.text)["error"]
        missing = [name for name in ("message", "type", "param", "code") if name not in error]
    except (ValueError, KeyError, TypeError):
        return Observation("other", f"not in OpenAI's form: {response.text[:60]!r}")
    if missing:
        return Observation("almost OpenAI's", f"without {', '.join(missing)}")
    return Observation("OpenAI's", "message, type, param and code")


@behaviour("usage")
async def usage(probe: Probe) -> Observation:
    answer = await probe.ask()
    if not answer.usages:
        return Observation("missing", "a whole answer has none")
    given = answer.usages[-1]
    total = given.get("total_tokens")
    if total != answer.num_prompt_tokens + answer.num_tokens:
        return Observation("wrong", f"total_tokens is {total}, of {given}")
    return Observation("right", "total is the sum of prompt and completion")


@behaviour("usage of a stream")
async def usage_of_stream(probe: Probe) -> Observation:
    whole = await probe.ask()
    streamed = await probe.ask(stream=True)
    plain = await probe.ask(stream=True, stream_options={"include_usage": False})
    if not streamed.usages:
        return Observation("missing", "include_usage has no effect")
    if plain.usages:
        return Observation("always", "also without include_usage")
    last = streamed.chunks[-1]
    if last.get("choices") or not last.get("usage"):
        return Observation("elsewhere", "not in a last chunk without choices")
    if whole.num_tokens != streamed.num_tokens:
        return Observation("wrong", f"{streamed.num_tokens} tokens, whole {whole.num_tokens}")
    return Observation("right", "in a last chunk without choices, equal to the whole answer's")


@behaviour("stream equals whole")
async def stream_equals_whole(probe: Probe) -> Observation:
    whole = await probe.ask()
    streamed = await probe.ask(stream=True)
    return Observation("yes" if whole.text == streamed.text else "no", "the text at temperature 0")


@behaviour("[DONE]")
async def done(probe: Probe) -> Observation:
    answer = await probe.ask(stream=True)
    is_last = answer.done == 1 and not answer.after_done
    return Observation("once, last" if is_last else "other", f"{answer.done} in the stream")


@behaviour("role")
async def role(probe: Probe) -> Observation:
    if probe.kind == "text":
        return Observation("none", "text completions have none")
    count = len((await probe.ask(stream=True)).first.roles)
    return Observation("one chunk" if count == 1 else "other", f"{count} chunk(s) have it")


@behaviour("finish_reason")
async def finish_reason(probe: Probe) -> Observation:
    reasons = (await probe.ask(stream=True)).first.finish_reasons
    return Observation("once" if len(reasons) == 1 else "other", f"{reasons}")


@behaviour("tokenization")
async def tokenization(probe: Probe) -> Observation:
    server = probe.server
    for form, back in (
        ({"model": server.model, "prompt": "Hello there"}, "prompt"),
        ({"content": "Hello there"}, "content"),
    ):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            response = await server.post("/tokenize", form)
            tokens = response.json()["tokens"]
            body = {"tokens": tokens} | ({"model": server.model} if back == "prompt" else {})
            text = (await server.post("/detokenize", body)).json()[back]
            same = "comes back" if "Hello there" in text else f"comes back as {text!r}"
            style = "vLLM's" if back == "prompt" else "llama.cpp's"
            return Observation(f"{style} form", f"{len(tokens)} tokens, the text {same}")
    return Observation("none", "no /tokenize")


@behaviour("metrics")
async def metrics(probe: Probe) -> Observation:
    response = await probe.server.get("/metrics")
    if not response.is_success:
        return Observation("none", f"/metrics is {response.status_code}")
    running = "tell" if _RUNNING.search(response.text) else "do not tell"
    return Observation("Prometheus", f"they {running} how many requests run")


@behaviour("disconnect frees the engine")
async def disconnect(probe: Probe) -> Observation:
    server = probe.server
    # As long an answer as the server will take; some check what fits.
    for limit in (1500, 500, 100):
        body = probe.body(stream=True, max_tokens=limit, ignore_eos=True, temperature=0)
        events = server.events(probe.path, body)
        try:
            count = 0
            async for _ in events:
                count += 1
                if count == 3:
                    break
        except RefusedError:
            continue
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        break
    left = time.monotonic()
    response = await server.get("/metrics")
    if not (response.is_success and _RUNNING.search(response.text)):
        await probe.ask(max_tokens=2)
        took = time.monotonic() - left
        return Observation("not seen", f"no metric; the next request took {took:.2f} s")
    while time.monotonic() - left < _FREE_WITHIN_S:
        text = (await server.get("/metrics")).text
        if sum(float(value) for value in _RUNNING.findall(text)) == 0:
            took = time.monotonic() - left
            return Observation("yes", f"nothing runs {took:.2f} s after the client left")
        await asyncio.sleep(_POLL_S)
    return Observation("no", f"it still runs after {_FREE_WITHIN_S:g} s")


def _status(status: int, expected: int) -> Observation:
    if status == expected:
        return Observation(str(status), "as OpenAI's")
    return Observation(str(status), f"OpenAI's is {expected}")


async def observe(name: str, probe: Probe) -> Observation:
    """One of the behaviours; a server that fails on it is an observation as well."""
    try:
        return await BEHAVIOURS[name](probe)
    except RefusedError as error:
        return Observation("refused", f"{error}"[:100])
    except FaultError as error:
        return Observation("fails", f"{error}"[:100])
