"""Checks of the fields that say where an answer ends and what of it is shown."""

from __future__ import annotations

from axion.conformance.check import Finding, check, dropped, found, honoured
from axion.conformance.probe import CannotTellError, Probe


@check("max_tokens")
async def max_tokens(probe: Probe) -> Finding:
    names = ("max_tokens", "max_completion_tokens") if probe.kind == "chat" else ("max_tokens",)
    await probe.ask(max_tokens=3)
    await probe.greedy()
    most = (await probe.given()).num_tokens
    if most < 7:
        raise CannotTellError("the model's answers are too short")
    for name in names:
        for limit in (3, 6):
            answer = await probe.ask(**{"max_tokens": None, name: limit})
            if (answer.num_tokens, answer.finish_reason) != (limit, "length"):
                return dropped(
                    f"{name}: {limit} gives {answer.num_tokens} tokens "
                    f"and finish_reason {answer.finish_reason}"
                )
    return honoured(f"exact, finish_reason length ({', '.join(names)})")


async def _stop_string(probe: Probe) -> tuple[str, str]:
    """The long answer and a part of it that lies across chunks, if there is one."""
    text = await probe.steady()
    pieces = (await probe.greedy()).first.pieces
    places: list[tuple[int, int]] = []
    border = 0
    for piece in pieces[:-1]:
        border += len(piece)
        places += [(border - 2, border + 2), (border - 1, border + 1)]
    # Where chunks are unknown, or the text repeats itself, any part of it serves.
    places += [(start, start + 2) for start in range(len(text) - 1)]
    best = ""
    for start, end in places:
        part = text[max(start, 0) : end]
        if len(part) < 2 or "\ufffd" in part or part != part.strip():
            continue
        at = text.find(part)
        if at == start > 0:
            return text, part
        best = best or part
    if not best:
        raise CannotTellError("the answer has no part that could be a stop string")
    return text, best


@check("stop")
async def stop(probe: Probe) -> Finding:
    text, part = await _stop_string(probe)
    expected = text[: text.find(part)]
    for value in (part, ["\u2603never\u2603", part]):
        for stream in (None, True):
            answer = await probe.ask(stop=value, stream=stream)
            how = "streamed" if stream else "whole"
            if answer.text == text:
                return dropped(f"the answer goes on after a stop string, {how}")
            if answer.text != expected:
                leaked = answer.text.startswith(expected)
                what = "has a part of the stop string" if leaked else "is not what came before it"
                return dropped(f"the answer {what}, {how}")
            if answer.finish_reason != "stop":
                return dropped(f"finish_reason is {answer.finish_reason}, {how}")
    return honoured("cut before a string across two chunks, nothing of it leaks")


@check("include_stop_str_in_output")
async def include_stop_str_in_output(probe: Probe) -> Finding:
    text, part = await _stop_string(probe)
    expected = text[: text.find(part)]
    if (await probe.given(stop=part)).text != expected:
        raise CannotTellError("stop does not work")
    answer = await probe.ask(stop=part, include_stop_str_in_output=True)
    return found(
        answer.text == expected + part,
        "the stop string is at the answer's end",
        "the stop string is not at the answer's end",
    )


@check("stop_token_ids")
async def stop_token_ids(probe: Probe) -> Finding:
    text = await probe.steady()
    num_tokens = (await probe.given()).num_tokens
    try:
        ids = list(await probe.ids_in(text))
    except CannotTellError:
        forced = await probe.given(logit_bias={"101": 100})
        if forced.finish_reason != "length" or forced.text == text:
            raise
        answer = await probe.ask(logit_bias={"101": 100}, stop_token_ids=[101])
        return found(
            answer.finish_reason == "stop" and len(answer.text) < len(forced.text),
            "a forced token ends the answer",
            "a forced token does not end the answer",
        )
    answer = await probe.ask(stop_token_ids=ids)
    if answer.num_tokens <= 1 and answer.text:
        return dropped("the token that ends the answer is in its text")
    return found(
        answer.finish_reason == "stop" and answer.num_tokens < num_tokens,
        f"the answer ends after {answer.num_tokens} of {num_tokens} tokens",
        "the answer does not end at its own tokens",
    )


@check("min_tokens")
async def min_tokens(probe: Probe) -> Finding:
    ending = await probe.ending()
    least = ending.num_tokens + 8
    answer = await probe.ask(
        ending.prompt, **ending.fields, min_tokens=least, max_tokens=least + 16
    )
    return found(
        answer.num_tokens >= least,
        f"{answer.num_tokens} tokens instead of {ending.num_tokens} ({ending.how})",
        f"{answer.num_tokens} tokens with min_tokens: {least} ({ending.how})",
    )


@check("ignore_eos")
async def ignore_eos(probe: Probe) -> Finding:
    ending = await probe.ending()
    limit = ending.num_tokens + 16
    answer = await probe.ask(ending.prompt, **ending.fields, ignore_eos=True, max_tokens=limit)
    return found(
        (answer.num_tokens, answer.finish_reason) == (limit, "length"),
        f"{limit} tokens instead of {ending.num_tokens} ({ending.how})",
        f"{answer.num_tokens} tokens, finish_reason {answer.finish_reason} ({ending.how})",
    )


@check("skip_special_tokens")
async def skip_special_tokens(probe: Probe) -> Finding:
    ending = await probe.ending()
    limit = ending.num_tokens + 8
    fields = {**ending.fields, "ignore_eos": True, "max_tokens": limit}
    plain = await probe.given(ending.prompt, **fields)
    if plain.num_tokens != limit:
        raise CannotTellError("no special token can be had into an answer")
    answer = await probe.ask(ending.prompt, **fields, skip_special_tokens=False)
    return found(
        len(answer.text) > len(plain.text),
        "a special token shows in the text",
        "a special token does not show in the text",
    )
