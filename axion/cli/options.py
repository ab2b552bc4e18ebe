"""The options that several commands share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer

from axion.cli.session import Model, local_model

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face id, folder, GGUF file or axion/demo; default: MODEL_NAME, or with --url "
        "the first model that the server lists.",
        show_default=False,
    ),
]
LocalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face id, folder, GGUF file or axion/demo; default: MODEL_NAME.",
        show_default=False,
    ),
]
Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Talk to a running server, such as http://localhost:3000/v1."),
]
ApiKey = Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Key for the server.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, max=2, help="0 takes the likeliest token every time.")
]
TopP = Annotated[
    float | None, typer.Option(min=0, max=1, help="Sample from this share of the probability.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]


def open_model(
    name: str | None, url: str | None, api_key: str | None
) -> AbstractContextManager[Model]:
    """The model to talk to: at `url` if there is one, else on this machine."""
    if url is None:
        return local_model(name)
    from axion.cli.remote import remote_model

    return remote_model(url, name, api_key)


def request_body(model: Model, **fields: Any) -> dict[str, Any]:
    """A streaming request without the fields that are None."""
    given = {name: value for name, value in fields.items() if value is not None}
    return {
        "model": model.name,
        "stream": True,
        "stream_options": {"include_usage": True},
        **given,
    }


def chat_messages(system: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []
