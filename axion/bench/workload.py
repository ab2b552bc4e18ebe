"""What is asked of a server: prompts and answers of which lengths, what they share, and when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

# Common words, which the tokenizers of most models have whole.
_WORDS = (
    "time people year way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city name president team minute idea body information back parent face "
    "others level office door health person art war history party result change morning reason "
    "research girl guy moment air teacher force education"
)
WORDS = tuple(_WORDS.split())


class Range(NamedTuple):
    """Both ends are part of it."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Range:
        """Of `128` or `100-1024`.

        Raises:
            ValueError: it is neither.
        """
        low, dash, high = text.partition("-")
        if not low.isascii() or not low.isdigit() or (dash and not high.isdigit()):
            raise ValueError(f"{text!r} is not a number of tokens, such as 128 or 100-1024.")
        found = cls(int(low), int(high or low))
        if not 0 < found.low <= found.high:
            raise ValueError(f"{text!r} must begin above 0 and must not end below its beginning.")
        return found

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


class Kind(NamedTuple):
    """Requests of one kind.

    Attributes:
        prompt_len, output_len: in tokens, drawn evenly.
        weight: how many of them there are, beside those of other kinds.
    """

    prompt_len: Range
    output_len: Range
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Kind:
        """Of `128:64` (tokens in and out) or `100-1024:64*3`.

        Raises:
            ValueError: it is neither.
        """
        lengths, star, weight = text.partition("*")
        prompt_len, colon, output_len = lengths.partition(":")
        if not colon:
            raise ValueError(f"{text!r} is not IN:OUT or IN:OUT*WEIGHT, such as 1024:16*3.")
        try:
            number = float(weight) if star else 1.0
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError(f"{weight!r} is no weight: it must be a number above 0.")
        return cls(Range.parse(prompt_len), Range.parse(output_len), number)


class Planned(NamedTuple):
    """A request that is to be sent.

    Attributes:
        kind: index of its kind.
        prefix: of `prompt_len`, how many tokens all prompts of the run begin with.
        seed: of the prompt's words.
    """

    kind: int
    prompt_len: int
    output_len: int
    prefix: int
    seed: int


def plan(
    kinds: tuple[Kind, ...], *, shared_prefix: float = 0.0, seed: int = 0
) -> Iterator[Planned]:
    """Requests without end, the same ones for the same seed.

    Args:
        shared_prefix: share of each prompt with which all prompts begin.
    """
    draw = random.Random(seed)
    weights = [kind.weight for kind in kinds]
    while True:
        (index,) = draw.choices(range(len(kinds)), weights)
        kind = kinds[index]
        prompt_len = draw.randint(*kind.prompt_len)
        yield Planned(
            index,
            prompt_len,
            draw.randint(*kind.output_len),
            round(shared_prefix * prompt_len),
            draw.getrandbits(62),
        )


def arrivals(rate: float, seed: int = 0) -> Iterator[float]:
    """Seconds from the beginning, as of many clients that know nothing of each other (Poisson)."""
    draw = random.Random(seed)
    now = 0.0
    while True:
        now += draw.expovariate(rate)
        yield now


class Prompts:
    """Prompts of a number of tokens, for a tokenizer that is not known.

    Args:
        overhead: tokens of a prompt without words: the chat template's.
        tokens_per_word: of `WORDS`, on average.
    """

    def __init__(self, overhead: float = 0.0, tokens_per_word: float = 1.0) -> None:
        self.overhead = overhead
        self.tokens_per_word = tokens_per_word

    def text(self, planned: Planned, prefix_seed: int = 0) -> str:
        """As near to the length that is planned as words allow; at least one word."""
        num_words = max(1, round((planned.prompt_len - self.overhead) / self.tokens_per_word))
        num_shared = min(num_words, round(planned.prefix / self.tokens_per_word))
        shared = random.Random(prefix_seed).choices(WORDS, k=num_shared)
        return " ".join(
            shared + random.Random(planned.seed).choices(WORDS, k=num_words - num_shared)
        )
