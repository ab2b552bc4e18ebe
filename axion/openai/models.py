"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Literal

from axion.openai.fields import ResponseModel


class Model(ResponseModel):
    """A model that is served.

    Attributes:
        created: when it was loaded, in seconds since 1970.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(ResponseModel):
    object: Literal["list"]
    data: list[Model]
