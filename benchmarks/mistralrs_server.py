"""mistral.rs's Python package behind just enough of the OpenAI API for `axion bench` to ask it.

    python benchmarks/mistralrs_server.py MODEL --port PORT --slots SLOTS [--isq Q8_0]

Its wheel has the engine with continuous batching, and no server.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from library_server import Usage, serve
from mistralrs import ChatCompletionRequest, ModelDType, Runner, Which


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="sequences at once")
    parser.add_argument("--isq", help="quantize while loading: Q8_0, Q4_0, ...")
    arguments = parser.parse_args()
    runner = Runner(
        which=Which.Plain(model_id=arguments.model, dtype=ModelDType.BF16),
        max_seqs=arguments.slots,
        token_source="none",
        in_situ_quant=arguments.isq,
    )

    def chat(messages: list[dict[str, str]], max_tokens: int) -> Iterator[str | Usage]:
        request = ChatCompletionRequest(
            model="default", messages=messages, max_tokens=max_tokens, temperature=0.0, stream=True
        )
        for chunk in runner.send_chat_completion_request(request):
            yield chunk.choices[0].delta.content or ""
            if chunk.usage:
                yield Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)

    serve(chat, arguments.port)


if __name__ == "__main__":
    main()
