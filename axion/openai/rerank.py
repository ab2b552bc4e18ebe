"""`POST /v1/rerank` in the shape that Jina and Cohere share, and `POST /v1/score` in vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from axion.openai.embeddings import MAX_INPUTS, TRUNCATE_HELP, PoolingUsage
from axion.openai.fields import (
    FAIL_FAST,
    NonEmptyText,
    Refused,
    RequestModel,
    ResponseModel,
    TokenCount,
    TruncatePromptTokens,
    at_most,
    field_error,
    text_or_list,
)

_MODEL_HELP = "one of RERANK_MODEL, or an id of fastembed's; unset: the first"
_ACTIVATION_HELP = "false gives the model's raw scores; else they are between 0 and 1"


class DocumentObject(RequestModel):
    text: str


def _document_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "object" if isinstance(value, dict) else None


Document = Annotated[
    Annotated[str, Tag("text")] | Annotated[DocumentObject, Tag("object")],
    Discriminator(
        _document_kind,
        custom_error_type="expected",
        custom_error_message="a string, or an object with a text",
    ),
]


class RerankRequest(RequestModel):
    query: NonEmptyText
    documents: Annotated[list[Document], Field(min_length=1), FAIL_FAST, at_most(MAX_INPUTS)]
    model: NonEmptyText | None = Field(None, description=_MODEL_HELP)
    top_n: TokenCount | None = Field(None, description="best documents to return; unset: all")
    return_documents: bool | None = Field(
        None, description="put the text of each document into its result; unset: false"
    )
    max_tokens_per_doc: TokenCount | None = Field(
        None, description="cut longer documents to so many tokens, in tokens"
    )
    max_chunks_per_doc: Annotated[None, Refused("documents are not split into chunks")] = None
    rank_fields: (
        Annotated[list[str], Refused("a document's text is all that is ranked", (["text"],))] | None
    ) = None
    relevant_spans: Annotated[None, Refused("documents are scored as a whole")] = None
    priority: Annotated[int, Refused("texts wait in one queue", (0,))] | None = None

    # Extensions, with the names and meanings that vLLM gave them.
    truncate_prompt_tokens: TruncatePromptTokens | None = Field(
        None, description=f"{TRUNCATE_HELP}, query and document together; unset: -1"
    )
    use_activation: bool | None = Field(None, description=_ACTIVATION_HELP)

    @property
    def texts(self) -> list[str]:
        return [d if isinstance(d, str) else d.text for d in self.documents]


class DocumentText(ResponseModel):
    text: str


class RerankResult(ResponseModel):
    """One document's place.

    Attributes:
        index: the document's place in the request.
        relevance_score: higher is more relevant.
    """

    index: int
    relevance_score: float
    document: DocumentText = Field(default_factory=lambda: DocumentText(text=""))


class ApiVersion(ResponseModel):
    version: str


class RerankTokens(ResponseModel):
    input_tokens: int


class RerankMeta(ResponseModel):
    """What Cohere's client reads of an answer beside its results."""

    api_version: ApiVersion
    tokens: RerankTokens


class RerankAnswer(ResponseModel):
    """The results, best first; those that are equally good in the request's order."""

    id: str
    model: str
    results: list[RerankResult]
    usage: PoolingUsage
    meta: RerankMeta


Texts = Annotated[
    Annotated[NonEmptyText, Tag("text")]
    | Annotated[
        list[NonEmptyText], Field(min_length=1), FAIL_FAST, at_most(MAX_INPUTS), Tag("list")
    ],
    Discriminator(
        text_or_list,
        custom_error_type="expected",
        custom_error_message="a string or a list of strings",
    ),
]


class ScoreRequest(RequestModel):
    """Pairs of texts: one with one, one with each, or each with its counterpart."""

    text_1: Texts
    text_2: Texts
    model: NonEmptyText | None = Field(None, description=_MODEL_HELP)
    truncate_prompt_tokens: TruncatePromptTokens | None = Field(
        None, description=f"{TRUNCATE_HELP}, both texts together"
    )
    use_activation: bool | None = Field(None, description=_ACTIVATION_HELP)
    user: str | None = Field(None, description="accepted; has no effect on the answer")

    @model_validator(mode="after")
    def _texts_pair_up(self) -> ScoreRequest:
        if len(self.queries) not in {1, len(self.documents)}:
            raise field_error(
                "text_1",
                f"must be one text, or as many as text_2 has ({len(self.documents)}), "
                f"got {len(self.queries)}",
            )
        return self

    @property
    def queries(self) -> list[str]:
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def documents(self) -> list[str]:
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2


class Score(ResponseModel):
    object: Literal["score"]
    index: int
    score: float


class ScoreList(ResponseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage
