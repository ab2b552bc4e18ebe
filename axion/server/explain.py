"""`POST /v1/route/explain`."""

from __future__ import annotations

from collections.abc import Collection

from starlette.responses import Response

from axion.errors import AxionError
from axion.openai.explain import ExplainedEngine, ExplainRequest, Explanation
from axion.openai.features import features
from axion.router.decide import Reason, Verdict
from axion.router.served import ServedModel
from axion.server.endpoint import Call, ModelEndpoint, model_response, off_loop


class Explain(ModelEndpoint[ExplainRequest]):
    request_type = ExplainRequest

    async def respond(self, call: Call[ExplainRequest]) -> Response:
        served = call.state.registry.get(call.model)
        request = await off_loop(call.num_bytes, call.request.generation_request, served.name)
        wanted = features(request) if request is not None else frozenset[str]()
        try:
            answered_by, error = (await served.choose(wanted)).engine, None
        except AxionError as refusal:
            answered_by, error = None, refusal.message
        return model_response(
            Explanation(
                model=served.name,
                device=served.decision.device if served.decision is not None else None,
                features=sorted(wanted),
                engines=await _engines(served, wanted),
                answered_by=answered_by,
                error=error,
            )
        )


async def _engines(served: ServedModel, wanted: Collection[str]) -> list[ExplainedEngine]:
    candidates = {candidate.engine: candidate for candidate in served.candidates}
    if served.decision is not None:
        verdicts = served.decision.verdicts
    else:
        verdicts = tuple(
            Verdict(engine=name, accepted=True, code=Reason.ACCEPTED, reason="")
            for name in candidates
        )
    explained = []
    for verdict in verdicts:
        candidate = candidates.get(verdict.engine)
        health = await candidate.health() if candidate is not None else None
        missing = candidate.backend.capabilities.missing(wanted) if candidate is not None else []
        explained.append(
            ExplainedEngine(
                engine=verdict.engine,
                version=verdict.version,
                accepted=verdict.accepted,
                code=verdict.code,
                reason=verdict.reason,
                state=health.state if health is not None else None,
                detail=health.detail if health is not None else "",
                missing=missing,
            )
        )
    return explained
