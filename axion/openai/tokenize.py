"""`POST /tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from axion.errors import InvalidRequestError
from axion.openai.chat import MAX_MESSAGES, MAX_TOOLS, ChatCompletionRequest, ChatTool, Message
from axion.openai.common import ModelRequest
from axion.openai.elsewhere import TOKENIZE_FIELDS_ELSEWHERE
from axion.openai.fields import FAIL_FAST, Object, Refused, ResponseModel, TokenId, at_most
from axion.openai.parsing import validate_request

_CHAT_FIELDS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
)


class TokenizeRequest(ModelRequest):
    """A text, or a conversation; the fields from `messages` on are for a conversation."""

    advice = TOKENIZE_FIELDS_ELSEWHERE

    prompt: str | None = Field(None, description="a text; either this or messages")
    add_special_tokens: bool | None = Field(
        None,
        description="whether the tokenizer adds its own, such as a beginning-of-sequence token; "
        "unset: to a text only, a conversation has them from its template",
    )
    return_token_strs: bool | None = Field(
        None, description="give the tokens also as the vocabulary writes them"
    )
    messages: (
        Annotated[list[Message], Field(min_length=1), FAIL_FAST, at_most(MAX_MESSAGES)] | None
    ) = None
    tools: Annotated[list[ChatTool], FAIL_FAST, at_most(MAX_TOOLS)] | None = None
    add_generation_prompt: bool | None = Field(
        None, description="end with the opening of an answer; true unless it says false"
    )
    continue_final_message: bool | None = Field(
        None, description="leave the last message open; needs add_generation_prompt: false"
    )
    chat_template_kwargs: Annotated[Object, at_most(64)] | None = Field(
        None, description="variables for the model's chat template"
    )
    chat_template: Annotated[None, Refused("the model's own template is used")] = None
    mm_processor_kwargs: Annotated[None, Refused("this model takes text only")] = None
    media_io_kwargs: Annotated[None, Refused("this model takes text only")] = None

    @model_validator(mode="after")
    def _is_a_text_or_a_conversation(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError(
                "Either prompt or messages is required, and not both.", param="prompt"
            )
        given = [name for name in _CHAT_FIELDS if getattr(self, name) is not None]
        if self.messages is None and given:
            raise InvalidRequestError(f"{given[0]} is only for messages.", param=given[0])
        return self

    def chat_or_text(self) -> str | ChatCompletionRequest:
        """What is to be tokenised."""
        if self.prompt is not None:
            return self.prompt
        fields: dict[str, Any] = self.model_dump(include={*_CHAT_FIELDS}, exclude_none=True)
        return validate_request(ChatCompletionRequest, {"model": self.model or "-", **fields})


class TokenizeAnswer(ResponseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(ModelRequest):
    tokens: Annotated[list[TokenId], FAIL_FAST]


class DetokenizeAnswer(ResponseModel):
    prompt: str
