"""Checks of the fields that say what the prompt is."""

from __future__ import annotations

import uuid
from typing import Any

from axion.conformance.check import Finding, accepted, check, dropped, found, honoured
from axion.conformance.probe import Probe
from axion.conformance.server import RefusedError

_QUESTION = {"role": "user", "content": "Tell me a long story about a fox and a river."}
_ROUNDS = 40


@check("prompt.token_ids", "text")
async def prompt_token_ids(probe: Probe) -> Finding:
    ids = [40 + i for i in range(12)]
    short = await probe.ask(prompt=ids[:5])
    long = await probe.ask(prompt=ids)
    grown = long.num_prompt_tokens - short.num_prompt_tokens
    if grown != 7:
        return dropped(f"7 ids more make the prompt {grown} tokens longer")
    greedy = await probe.steady()
    prompt = await probe.tokens.encode(probe.body()["prompt"])
    if not prompt:
        return honoured("each id is a token of the prompt")
    by_text = await probe.given()
    by_ids = await probe.ask(prompt=prompt)
    if by_ids.num_prompt_tokens != by_text.num_prompt_tokens:
        return honoured("each id is a token of the prompt, which gets no others")
    return found(
        by_ids.text == greedy,
        "the answer is that to the text of the ids",
        "the answer is not that to the text of the ids",
    )


@check("prompt.list", "text")
async def prompt_list(probe: Probe) -> Finding:
    prompts = ["Once upon a time", "1, 2, 3, 4,"]
    alone = [(await probe.given(prompt)).text for prompt in prompts]
    for stream in (None, True):
        answer = await probe.ask(prompt=prompts, stream=stream)
        how = "streamed" if stream else "whole"
        if sorted(answer.choices) != [0, 1]:
            return dropped(f"{len(answer.choices)} choice(s) for 2 prompts, {how}")
        if answer.texts != alone:
            return dropped(f"other answers than each one's alone, {how}")
    return honoured("a choice for each, streamed and whole")


@check("echo", "text")
async def echo(probe: Probe) -> Finding:
    greedy = await probe.steady()
    prompt = probe.body()["prompt"]
    answer = await probe.ask(echo=True)
    return found(
        answer.text == prompt + greedy,
        "the answer begins with the prompt",
        f"the answer is {answer.text[:40]!r}",
    )


@check("echo.logprobs", "text")
async def echo_logprobs(probe: Probe) -> Finding:
    answer = await probe.ask(echo=True, logprobs=1, max_tokens=2)
    lists = answer.first.logprobs or {}
    tokens, values = lists.get("tokens") or [], lists.get("token_logprobs") or []
    expected = answer.num_prompt_tokens + answer.num_tokens
    if len(tokens) != expected or len(values) != expected:
        return dropped(f"{len(tokens)} entries for {expected} tokens")
    return found(
        values[0] is None and all(isinstance(value, float) for value in values[1:]),
        "the prompt's tokens have them, the first one null",
        "values of the prompt's tokens are missing",
    )


@check("truncate_prompt_tokens")
async def truncate_prompt_tokens(probe: Probe) -> Finding:
    whole = (await probe.given(max_tokens=1)).num_prompt_tokens
    kept = whole // 2
    answer = await probe.ask(truncate_prompt_tokens=kept, max_tokens=1)
    return found(
        answer.num_prompt_tokens == kept,
        f"{kept} of {whole} tokens are kept",
        f"{answer.num_prompt_tokens} tokens where {kept} of {whole} are to be kept",
    )


@check("return_token_ids")
async def return_token_ids(probe: Probe) -> Finding:
    for stream in (None, True):
        answer = await probe.ask(return_token_ids=True, stream=stream)
        told = len(answer.of_prompt.get("prompt_token_ids", ())), len(answer.first.token_ids)
        expected = answer.num_prompt_tokens, answer.num_tokens
        if told != expected:
            how = "streamed" if stream else "whole"
            return dropped(f"{told} ids of prompt and answer for {expected} tokens, {how}")
    return honoured("each token's id, of the prompt and the answer, streamed and whole")


@check("prompt_logprobs")
async def prompt_logprobs(probe: Probe) -> Finding:
    answer = await probe.ask(prompt_logprobs=2, max_tokens=2)
    first, *entries = answer.of_prompt.get("prompt_logprobs") or [{}]
    if first is not None or len(entries) + 1 != answer.num_prompt_tokens:
        return dropped(f"{len(entries)} entries for {answer.num_prompt_tokens} tokens")
    return found(
        all(2 <= len(entry) <= 3 and _are_logprobs(entry) for entry in entries),
        "the prompt's tokens have them, with alternatives, the first one null",
        "values of the prompt's tokens are missing",
    )


def _are_logprobs(entry: dict[str, Any]) -> bool:
    return all(isinstance(token.get("logprob"), int | float) for token in entry.values())


@check("add_special_tokens", "text")
async def add_special_tokens(probe: Probe) -> Finding:
    with_them = await probe.given(max_tokens=1)
    answer = await probe.ask(add_special_tokens=False, max_tokens=1)
    if answer.num_prompt_tokens < with_them.num_prompt_tokens:
        return honoured("false makes the prompt shorter")
    return accepted("this model's tokenizer adds none")


async def _prompt_changes(probe: Probe, otherwise: str, *values: dict[str, Any]) -> Finding:
    """Whether any of these fields changes the prompt; a refusal counts if all are refused."""
    plain = await probe.given(messages=[_QUESTION], max_tokens=1)
    refusal: RefusedError | None = None
    num_refused = 0
    for fields in values:
        try:
            answer = await probe.ask(messages=[_QUESTION], max_tokens=1, **fields)
        except RefusedError as error:
            refusal = error
            num_refused += 1
            continue
        if answer.num_prompt_tokens != plain.num_prompt_tokens:
            [(_, value)] = fields.items()
            return honoured(f"{value} changes the prompt")
    if refusal is not None and num_refused == len(values):
        raise refusal
    if refusal is not None:
        return accepted(f"{otherwise}; other values are refused")
    return accepted(otherwise)


@check("add_generation_prompt", "chat")
async def add_generation_prompt(probe: Probe) -> Finding:
    finding = await _prompt_changes(
        probe, "the prompt does not change", {"add_generation_prompt": False}
    )
    return finding._replace(accepted=False)


@check("chat_template_kwargs", "chat")
async def chat_template_kwargs(probe: Probe) -> Finding:
    return await _prompt_changes(
        probe,
        "this model's template reads no variable that is known",
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"chat_template_kwargs": {"thinking": True}},
        {"chat_template_kwargs": {"add_generation_prompt": False}},
    )


@check("reasoning_effort", "chat")
async def reasoning_effort(probe: Probe) -> Finding:
    return await _prompt_changes(
        probe,
        "the prompt is the same with every level",
        *({"reasoning_effort": level} for level in ("low", "high", "none")),
    )


@check("continue_final_message", "chat")
async def continue_final_message(probe: Probe) -> Finding:
    whole = await probe.steady()
    cut = len(whole) // 2
    opening = probe.body()["messages"]
    begun = [*opening, {"role": "assistant", "content": whole[:cut]}]
    answer = await probe.ask(
        messages=begun, continue_final_message=True, add_generation_prompt=False
    )
    if answer.text.startswith(whole[:cut]):
        return dropped("the answer repeats the last message")
    if answer.text[:8] == whole[cut:][:8]:
        return honoured("the answer goes on with the last message")
    closed = await probe.given(messages=begun, add_generation_prompt=False)
    return found(
        answer.num_prompt_tokens < closed.num_prompt_tokens,
        "the prompt ends within the last message",
        "the last message is closed",
    )


@check("stream_options.continuous_usage_stats")
async def continuous_usage_stats(probe: Probe) -> Finding:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await probe.ask(stream=True, stream_options=options)
    counts = [usage.get("completion_tokens", 0) for usage in answer.usages]
    if len(counts) < max(2, len(answer.first.pieces) // 2):
        return dropped(f"{len(counts)} of {len(answer.chunks)} chunks have the usage")
    return found(
        counts == sorted(counts) and counts[0] < counts[-1],
        f"{len(counts)} of {len(answer.chunks)} chunks have the usage so far",
        "the usage does not grow",
    )


@check("priority")
async def priority(probe: Probe) -> Finding:
    await probe.ask(priority=-3, max_tokens=2)
    return accepted("no order of requests can be seen in one answer")


@check("cache_salt")
async def cache_salt(probe: Probe) -> Finding:
    prompt = f"{uuid.uuid4()} " + " ".join(f"word {i}" for i in range(_ROUNDS))

    async def num_cached(salt: str) -> int:
        return (await probe.ask(prompt, cache_salt=salt, max_tokens=1)).num_cached_tokens

    first, again, other = [await num_cached(salt) for salt in ("one", "one", "two")]
    if again <= first:
        return accepted("the usage does not show what the prefix cache gave")
    return found(
        other <= first,
        f"{again} cached tokens with the same salt, {other} with another one",
        f"{other} cached tokens with another salt",
    )


@check("messages.name", "chat")
async def messages_name(probe: Probe) -> Finding:
    return await _grows(probe, "name", "Rumpelstiltskin")


@check("messages.reasoning_content", "chat")
async def messages_reasoning_content(probe: Probe) -> Finding:
    return await _grows(probe, "reasoning_content", "Let me think about this for a while.")


async def _grows(probe: Probe, field: str, value: str) -> Finding:
    """Whether a field of an earlier message gets into the prompt."""
    role = "assistant" if field == "reasoning_content" else "user"
    first = {"role": role, "content": "Hello."}
    last = {"role": "user", "content": "Say something."}
    opening = [{"role": "user", "content": "Hi."}] if role == "assistant" else []
    plain = await probe.given(messages=[*opening, first, last], max_tokens=1)
    answer = await probe.ask(messages=[*opening, {**first, field: value}, last], max_tokens=1)
    if answer.num_prompt_tokens > plain.num_prompt_tokens:
        return honoured("the prompt has it")
    return accepted("this model's template does not show it")
