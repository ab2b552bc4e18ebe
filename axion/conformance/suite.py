"""All checks against one server, in order, and what they find."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from typing import NamedTuple

from axion.backends.capabilities import Capabilities, Support
from axion.conformance import limits, logprobs, prompts, sampling, structured, tools
from axion.conformance.behaviour import BEHAVIOURS, observe
from axion.conformance.check import CHECKS, Check, Finding, Kind
from axion.conformance.known import KNOWN
from axion.conformance.probe import CannotTellError, Probe
from axion.conformance.server import (
    FaultError,
    RefusedError,
    Server,
    UnreachableError,
)
from axion.conformance.tokens import Tokens

# Where each of them has registered its checks.
_MODULES = (sampling, limits, logprobs, structured, tools, prompts)
# Kills one server: it comes when everything else is known.
_LAST = "echo.logprobs"
_LOOK_AGAIN_S = 0.5
_WORST_FIRST = (Support.DROPPED, Support.REFUSED, Support.HONOURED, None)


class Row(NamedTuple):
    """A line of the report."""

    name: str
    result: str
    evidence: str


class Suite:
    """The checks of one server.

    Args:
        engine: its name, for what is known of it from its source.
        tokens: token ids of texts.

    Attributes:
        findings: by feature, as far as they have come.
        observations: of behaviour.
        kinds: the endpoints that the server has.
    """

    def __init__(self, server: Server, engine: str, tokens: Tokens) -> None:
        self._server = server
        self._engine = engine
        self._probes: dict[Kind, Probe] = {
            "chat": Probe(server, "chat", tokens),
            "text": Probe(server, "text", tokens),
        }
        self._why_not: dict[Kind, str] = {}
        self.findings: dict[str, Finding] = {}
        self.observations: list[Row] = []

    async def begin(self) -> None:
        """Find out which endpoints answer.

        Raises:
            UnreachableError: none does.
        """
        for kind, probe in self._probes.items():
            try:
                await self._greet(probe)
            except (RefusedError, FaultError) as error:
                self._why_not[kind] = str(error)
        if len(self._why_not) == len(self._probes):
            raise UnreachableError(
                f"The server does not answer as {self._server.model}: {self._why_not['chat']}."
            )

    async def _greet(self, probe: Probe) -> None:
        try:
            await probe.ask(max_tokens=2, temperature=None)
        except RefusedError as error:
            if not _names("max_tokens", error):
                raise
            await probe.ask(max_tokens=None, temperature=None)
        with contextlib.suppress(CannotTellError):  # some checks do without
            await probe.greedy()

    async def run(self, only: Collection[str] | None = None) -> AsyncIterator[Row]:
        """Each check's result as soon as it is known.

        Args:
            only: names of features and behaviours; all of them by default.
        """
        names = [name for name in CHECKS if name != _LAST]
        for name in names:
            if only is None or name in only:
                yield await self._check(CHECKS[name])
        probe = next(self._probes[kind] for kind in self._probes if kind not in self._why_not)
        for name in BEHAVIOURS:
            if only is None or name in only:
                row = Row(name, *await observe(name, probe))
                self.observations.append(row)
                yield row
        if only is None or _LAST in only:
            yield await self._check(CHECKS[_LAST])

    def capabilities(self, version: str) -> Capabilities:
        """What was found, as the router reads it; what could not be told is left out."""
        told = {n: f.support for n, f in sorted(self.findings.items()) if f.support is not None}
        return Capabilities(
            engine=self._engine, version=version, measured="conformance", features=told
        )

    async def _check(self, check: Check) -> Row:
        by_kind: dict[str, Finding] = {}
        for kind in check.kinds:
            if kind in self._why_not:
                by_kind[kind] = Finding(None, f"not asked: {self._why_not[kind]}"[:120])
            else:
                by_kind[kind] = await self._run(check, self._probes[kind])
        finding = self._with_source(check.feature, _worst(by_kind))
        if (name := self._server.rename.get(check.feature)) is not None:
            finding = finding._replace(evidence=f"as `{name}`: {finding.evidence}")
        self.findings[check.feature] = finding
        return Row(check.feature, finding.support or "cannot tell", finding.evidence)

    async def _run(self, check: Check, probe: Probe) -> Finding:
        try:
            return await check.run(probe)
        except CannotTellError as error:
            return Finding(None, str(error))
        except RefusedError as error:
            names = _names(check.feature, error)
            if not names and not await _answers(probe):
                return Finding(None, f"other requests are refused as well ({error})"[:120])
            named = "" if names else ", without its name"
            said = " ".join(error.message.split())[:80]
            return Finding(Support.REFUSED, f"{error.status}{named}: {said}")
        except FaultError as error:
            what = f"fails: {error}" if await self._survives() else f"the server dies ({error})"
            return Finding(Support.DROPPED, what[:120])

    async def _survives(self) -> bool:
        """Whether the server is still there, also in a moment."""
        for _ in range(4):
            if not await self._server.is_there():
                return False
            await asyncio.sleep(_LOOK_AGAIN_S)
        return True

    def _with_source(self, feature: str, finding: Finding) -> Finding:
        source = KNOWN.get(self._engine, {}).get(feature)
        if not finding.accepted or source is None:
            return finding
        return Finding(Support.HONOURED, f"{finding.evidence}. By its source: {source}")


def _worst(by_kind: Mapping[str, Finding]) -> Finding:
    """One finding of both endpoints': a field is honoured where both honour it."""
    kind = min(by_kind, key=lambda kind: _WORST_FIRST.index(by_kind[kind].support))
    worst = by_kind[kind]
    if len({finding.support for finding in by_kind.values()}) == 1:
        return worst
    others = [f"{k}: {f.support or 'cannot tell'}" for k, f in by_kind.items() if k != kind]
    return worst._replace(evidence=f"{kind}: {worst.evidence} ({', '.join(others)})")


def _names(feature: str, error: RefusedError) -> bool:
    said = f"{error.param} {error.message}".lower()
    return any(part in said for part in feature.lower().split("."))


async def _answers(probe: Probe) -> bool:
    """Whether a request that asks for nothing much is answered."""
    try:
        await probe.ask(max_tokens=2)
    except (RefusedError, FaultError):
        return False
    return True
