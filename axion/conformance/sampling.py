"""Checks of the fields that say how tokens are chosen."""

from __future__ import annotations

import string
from typing import Any

from axion.conformance.check import Finding, check, dropped, found, honoured
from axion.conformance.probe import NUM_SAMPLES, NUM_TOKENS, CannotTellError, Probe
from axion.conformance.server import RefusedError

_SEED = 20_171_129
_OTHER_SEEDS = (7, 421, 90_001)
_REPETITIVE = "1 1 1 1 1 1 1 1 1"
# For servers whose tokenizer nobody knows: ids that every vocabulary has, mostly of text.
_SOME_IDS = (101, 202, 300, 77)


@check("temperature")
async def temperature(probe: Probe) -> Finding:
    await probe.ask(temperature=2, max_tokens=2)
    try:
        prompt = await probe.wide()
    except CannotTellError as error:
        return dropped(f"at 2 {error}")
    if probe.loose:
        return dropped("it has no effect without top_k: the model's files ask for the likeliest")
    cold = {(await probe.ask(prompt, temperature=0)).text for _ in range(NUM_SAMPLES)}
    hot = {(await probe.ask(prompt, temperature=2)).text for _ in range(NUM_SAMPLES)}
    return found(
        len(cold) == 1 and len(hot) > NUM_SAMPLES // 2,
        f"at 0 all {NUM_SAMPLES} answers are equal, {len(hot)} differ at 2",
        f"{len(cold)} answers at 0 and {len(hot)} at 2, of {NUM_SAMPLES} each",
    )


async def _restricted_to_greedy(probe: Probe, **fields: Any) -> Finding:
    greedy = await probe.steady(await probe.wide())
    texts = [await probe.hot(**fields) for _ in range(4)]
    # Three of four: where tokens tie at the top, one answer may take another of them.
    return found(
        texts.count(greedy) >= 3,
        "the answer at temperature 2 is the likeliest one",
        "answers at temperature 2 are not the likeliest one",
    )


@check("top_k")
async def top_k(probe: Probe) -> Finding:
    return await _restricted_to_greedy(probe, top_k=1)


@check("top_p")
async def top_p(probe: Probe) -> Finding:
    return await _restricted_to_greedy(probe, top_p=1e-6)


@check("min_p")
async def min_p(probe: Probe) -> Finding:
    return await _restricted_to_greedy(probe, min_p=1.0)


async def _repeats(probe: Probe, seed: int) -> Finding:
    first, *others = [await probe.hot(seed=seed) for _ in range(4)]
    if any(text != first for text in others):
        return dropped(f"seed {seed} gives different answers")
    different = [await probe.hot(seed=other) for other in _OTHER_SEEDS]
    return found(
        any(text != first for text in different),
        f"seed {seed} repeats its answer at temperature 2, other seeds give others",
        "different seeds give the same answer",
    )


@check("seed")
async def seed(probe: Probe) -> Finding:
    return await _repeats(probe, _SEED)


@check("seed.0")
async def seed_0(probe: Probe) -> Finding:
    return await _repeats(probe, 0)


async def _letters(probe: Probe) -> dict[int, str]:
    """Some tokens, as far as they are known, and what they write."""
    return {ids[0]: text for text in "eZ7" if len(ids := await probe.tokens.encode(text)) == 1}


@check("logit_bias")
async def logit_bias(probe: Probe) -> Finding:
    greedy = await probe.steady()
    letters = await _letters(probe)
    forced = {}
    for token_id in letters or _SOME_IDS:
        answer = await probe.ask(max_tokens=8, logit_bias={str(token_id): 100})
        forced[token_id] = answer.text
    if letters:
        wrong = [text for text, letter in zip(forced.values(), letters.values(), strict=True)
                 if text != letter * 8]  # fmt: skip
        if wrong:
            return dropped(f"+100 on a token does not force it ({wrong[0]!r})")
        banned = {str(token_id): -100 for token_id in await probe.ids_in(greedy)}
        if (await probe.ask(logit_bias=banned)).text[:4] == greedy[:4]:
            return dropped("-100 on the answer's tokens does not change it")
        return honoured("+100 forces a token, -100 on the answer's tokens changes it")
    return found(
        len({*forced.values()}) > 1 and greedy[:4] not in {text[:4] for text in forced.values()},
        "+100 on different ids gives different answers",
        "+100 on a token does not change the answer",
    )


@check("allowed_token_ids")
async def allowed_token_ids(probe: Probe) -> Finding:
    letters = await _letters(probe)
    texts = {}
    for token_id in letters or _SOME_IDS:
        texts[token_id] = (await probe.ask(max_tokens=8, allowed_token_ids=[token_id])).text
    for token_id, letter in letters.items():
        if texts[token_id] != letter * 8:
            return dropped(f"an answer of nothing but {letter!r} is {texts[token_id]!r}")
    return found(
        len({*texts.values()}) > 1,
        "an answer has nothing but the allowed token",
        "different allowed tokens give the same answer",
    )


@check("bad_words")
async def bad_words(probe: Probe) -> Finding:
    letters = await _letters(probe)
    if len(letters) > 1:
        (first, bad), (second, good), *_ = letters.items()
        biased = {"max_tokens": 8, "logit_bias": {str(first): 100, str(second): 60}}
        if (await probe.given(**biased)).text == bad * 8:
            answer = await probe.ask(**biased, bad_words=[bad])
            return found(
                answer.text == good * 8,
                "a word that is forced is not written",
                f"a word that is forbidden is in {answer.text!r}",
            )
    greedy = await probe.steady()
    words = [word for word in {*greedy.split(), *greedy} if word.strip()]
    answer = await probe.ask(bad_words=words)
    return found(
        answer.text[:4] != greedy[:4],
        "the words of the answer change it",
        "the words of the answer do not change it",
    )


async def _changes(probe: Probe, **fields: Any) -> Finding:
    """Whether a penalty changes an answer that is the same every time without it.

    Where a model is too sure of itself for its likeliest answer to change, it may choose among
    letters only, or by a seed.
    """
    [(name, value)] = fields.items()
    await probe.ask(**fields)
    await probe.steady()
    wide = await probe.wide()
    letters = {str(ids[0]): 100 for letter in string.ascii_letters
               if len(ids := await probe.tokens.encode(letter)) == 1}  # fmt: skip
    settings: list[tuple[str | None, dict[str, Any]]] = [(None, {}), (_REPETITIVE, {})]
    settings += [(wide, {"logit_bias": letters})] if letters else []
    settings += [(wide, {**probe.loose, "temperature": 2, "seed": seed}) for seed in _OTHER_SEEDS]
    for prompt, setting in settings:
        asked = {"max_tokens": 2 * NUM_TOKENS, **setting}
        try:
            plain = await probe.ask(prompt, **asked)
            again = await probe.ask(prompt, **asked)
        except RefusedError:
            continue
        penalised = await probe.ask(prompt, **asked, **fields)
        if plain.text == again.text != penalised.text:
            of = "a seeded" if "seed" in setting else "the likeliest"
            return honoured(f"{value:g} changes {of} answer")
    return dropped(f"{name}: {value:g} changes no answer")


@check("presence_penalty")
async def presence_penalty(probe: Probe) -> Finding:
    return await _changes(probe, presence_penalty=2.0)


@check("frequency_penalty")
async def frequency_penalty(probe: Probe) -> Finding:
    return await _changes(probe, frequency_penalty=2.0)


@check("repetition_penalty")
async def repetition_penalty(probe: Probe) -> Finding:
    return await _changes(probe, repetition_penalty=3.0)


@check("n")
async def n(probe: Probe) -> Finding:
    prompt = await probe.wide()
    for stream in (None, True):
        answer = await probe.ask(prompt, **probe.loose, n=3, temperature=2, stream=stream)
        if sorted(answer.choices) != [0, 1, 2]:
            how = "streamed" if stream else "whole"
            return dropped(f"n: 3 gives {len(answer.choices)} choice(s), {how}")
        unfinished = [i for i, choice in answer.choices.items() if not choice.finish_reason]
        if unfinished:
            return dropped(f"choice {unfinished[0]} of 3 has no finish_reason")
    if len(set(answer.texts)) == 1:
        return dropped("the choices are copies of one")
    return honoured("3 choices, streamed and whole, which differ")


@check("best_of", "text")
async def best_of(probe: Probe) -> Finding:
    prompt = await probe.wide()
    one = await probe.given(prompt, temperature=1, max_tokens=8)
    best = await probe.ask(prompt, temperature=1, max_tokens=8, best_of=4)
    return found(
        len(best.choices) == 1 and best.num_tokens > 2 * one.num_tokens,
        f"{best.num_tokens} tokens were generated for one choice of at most 8",
        f"{best.num_tokens} tokens were generated with best_of: 4, as without it",
    )
