"""`axion new-model`: the starting file of an architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import axion
from axion.cli import parity
from axion.errors import InvalidRequestError
from axion.parity.messages import NewModelRequest, Written


def new_model(
    name: Annotated[
        str,
        typer.Argument(
            help="An architecture or a model type of transformers, such as Qwen3ForCausalLM or "
            "qwen3."
        ),
    ],
) -> None:
    """Write the starting file of an architecture and its parity row, in a checkout of Axion.

    The file is a standard decoder with the defaults of the family's configuration. What
    transformers has beyond that is listed; `axion parity NAME --tiny` then finds the first module
    that differs.
    """
    checkout = Path(axion.__file__).parent.parent
    if not (checkout / "tests" / "parity" / "checkpoints.py").is_file():
        raise InvalidRequestError(
            "axion new-model writes into a source checkout, and this is an installed package. "
            "Clone the repository, or bring the architecture in a package of your own by the "
            "entry-point group axion.models."
        )
    request = NewModelRequest(name=name, checkout=str(checkout))
    written = parity.ask(request, f"Looking at {name} in transformers")
    assert isinstance(written, Written)
    print(f"Wrote {' and a row in '.join(written.files)}.")
    _list("transformers makes it of", written.relatives)
    _list("Parameters that the file has no module for", written.tensors)
    _list("Fields that change what is computed, and that it does not read", written.fields)
    print(f"Next: axion parity {written.architecture} --tiny")


def _list(title: str, lines: tuple[str, ...]) -> None:
    if lines:
        print(f"{title}:")
        for line in lines:
            print(f"  {line}")
