"""A check: what it is called, what it asks of the server, and what it finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from axion.backends.capabilities import Support
from axion.conformance.probe import Probe

Kind = Literal["chat", "text"]


class Finding(NamedTuple):
    """What became of a field, and how that shows.

    Attributes:
        support: None where it cannot be told.
        accepted: nothing shows from outside; only that there was no error.
    """

    support: Support | None
    evidence: str
    accepted: bool = False


def honoured(evidence: str) -> Finding:
    return Finding(Support.HONOURED, evidence)


def dropped(evidence: str) -> Finding:
    return Finding(Support.DROPPED, evidence)


def accepted(why: str) -> Finding:
    """No effect can be seen from outside, so none is counted on."""
    return Finding(Support.DROPPED, f"accepted; {why}", accepted=True)


def found(is_honoured: bool, evidence: str, otherwise: str) -> Finding:
    return honoured(evidence) if is_honoured else dropped(otherwise)


CheckFunction = Callable[[Probe], Awaitable[Finding]]


class Check(NamedTuple):
    feature: str
    kinds: tuple[Kind, ...]
    run: CheckFunction


CHECKS: dict[str, Check] = {}


def check(feature: str, *kinds: Kind) -> Callable[[CheckFunction], CheckFunction]:
    """Makes a function the check of a feature.

    It returns what it found. It raises `RefusedError` where the server refuses the field, and
    `CannotTellError` where what it needs beside the field is not there.
    """

    def register(function: CheckFunction) -> CheckFunction:
        assert feature not in CHECKS, feature
        CHECKS[feature] = Check(feature, kinds or ("chat", "text"), function)
        return function

    return register
