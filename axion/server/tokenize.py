"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from starlette.responses import Response

from axion.openai.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)
from axion.server.endpoint import Call, ModelEndpoint, model_response, off_loop


class Tokenize(ModelEndpoint[TokenizeRequest]):
    request_type = TokenizeRequest

    async def respond(self, call: Call[TokenizeRequest]) -> Response:
        request = call.request
        tokens = await call.backend.tokenize(
            await off_loop(call.num_bytes, request.chat_or_text),
            add_special_tokens=request.add_special_tokens,
            with_strings=bool(request.return_token_strs),
        )
        answer = TokenizeAnswer(
            count=len(tokens.token_ids),
            max_model_len=tokens.max_model_len,
            tokens=tokens.token_ids,
            token_strs=tokens.token_strings if request.return_token_strs else None,
        )
        return model_response(answer)


class Detokenize(ModelEndpoint[DetokenizeRequest]):
    request_type = DetokenizeRequest

    async def respond(self, call: Call[DetokenizeRequest]) -> Response:
        text = await call.backend.detokenize(call.request.tokens)
        return model_response(DetokenizeAnswer(prompt=text))
