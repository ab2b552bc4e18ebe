"""Chat templates: a conversation to the prompt that the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from axion.errors import InvalidRequestError, ModelLoadError
from axion.hub.gguf import is_gguf, read_gguf
from axion.text.mistral_template import mistral_template
from axion.text.template_process import DEFAULT_TIMEOUT_S, TemplateProcess
from axion.text.tokenizer import Tokenizer, read_json, read_tokenizer_config
from axion.text.tokenizer_formats import TEKKEN_FILE, chat_format

Message = dict[str, Any]

# Names that a request must not set: the rest of the request sets them, or the model does.
_RESERVED = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversations",
    "documents",
    "messages",
    "return_assistant_tokens_mask",
    "tokenize",
    "tokenizer",
    "tools",
}


class _Template(msgspec.Struct, frozen=True):
    """One template and what it reads.

    Attributes:
        variables: what the caller may set.
        reads_parts: it goes through a content's parts; otherwise contents must be strings.
        reads_strings: it looks which of the two a content is.
        joins_arguments: it takes a call's arguments as JSON text; otherwise as an object.
    """

    source: str
    variables: frozenset[str]
    reads_parts: bool
    reads_strings: bool
    joins_arguments: bool


class ChatTemplate:
    """A model's chat template, rendered as transformers' `apply_chat_template` does.

    Args:
        templates: by name; `default` is taken, and for requests with tools `tool_use`, if there.
        special_tokens: variables such as `bos_token`.
        process: where it is rendered; closed with the template.

    Raises:
        ModelLoadError: a template has a syntax error.
    """

    def __init__(
        self, templates: dict[str, str], special_tokens: dict[str, str], process: TemplateProcess
    ) -> None:
        self._special_tokens = special_tokens
        self._process = process
        self._templates = {
            name: _Template(source=source, **_described(process.describe(source)))
            for name, source in templates.items()
        }

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: list[dict[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation; encode it with `Tokenizer.encode_chat`.

        It waits for another process: an event loop calls it in a thread.

        What OpenAI's API allows and templates do not expect is put in their form: the JSON of a
        tool call's `arguments` is parsed, unless the template joins it to text; a content given
        as text parts becomes a string, the parts joined by line feeds (as vLLM does), unless the
        template reads parts itself; a field that is null counts as absent, and a content that is
        absent next to calls is empty.

        Args:
            template_kwargs: further variables of the template (`enable_thinking`); those that
                it does not read have no effect.

        Raises:
            InvalidRequestError: the template refuses the conversation, or is stopped for what it
                does; an argument is not allowed or malformed; no template is for such requests.
        """
        if not messages:
            raise InvalidRequestError("messages must not be empty.", param="messages")
        if add_generation_prompt and continue_final_message:
            raise InvalidRequestError(
                "continue_final_message needs add_generation_prompt to be false.",
                param="continue_final_message",
            )
        variables = template_kwargs or {}
        for name in variables:
            if name in _RESERVED or name in self._special_tokens:
                raise InvalidRequestError(
                    f"chat_template_kwargs must not set {name!r}.", param="chat_template_kwargs"
                )
        template = self._for(with_tools=bool(tools))
        return self._process.render(
            template.source,
            {
                **self._special_tokens,
                **{k: v for k, v in variables.items() if k in template.variables},
                "messages": [
                    _normalize(message, f"messages[{i}]", template)
                    for i, message in enumerate(messages)
                ],
                "tools": tools or None,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
                "continue_final_message": continue_final_message,
            },
        )

    def source(self, *, with_tools: bool = False) -> str:
        """The template that conversations with or without tools are rendered by.

        Raises:
            InvalidRequestError: none is for them.
        """
        return self._for(with_tools).source

    def variables(self, *, with_tools: bool = False) -> frozenset[str]:
        """The variables that this template reads; raises as `source`."""
        return self._for(with_tools).variables

    def _for(self, with_tools: bool) -> _Template:
        use_tools = with_tools and "tool_use" in self._templates
        template = self._templates.get("tool_use" if use_tools else "default")
        if template is None:
            raise InvalidRequestError(
                f"This model's chat templates are named {', '.join(sorted(self._templates))}, and "
                f"none is for requests {'with' if with_tools else 'without'} tools, which needs "
                "the name default. Use /v1/completions with a prompt."
            )
        return template

    def close(self) -> None:
        """End the process that renders; it also ends with this one."""
        self._process.close()


def load_chat_template(
    path: Path, tokenizer: Tokenizer, *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> ChatTemplate | None:
    """The chat template of a Hugging Face model folder or GGUF file; None if it has none.

    `chat_template.jinja` and `additional_chat_templates/` come before the `chat_template` of
    `tokenizer_config.json`, and that before `chat_template.json`. Where there is none,
    `tekken.json` tells the format.

    Args:
        timeout_s: most time for one conversation, in seconds.

    Raises:
        ModelLoadError: a template has a syntax error.
    """
    templates = _templates(path)
    if not templates:
        return None
    return ChatTemplate(templates, tokenizer.special_tokens, TemplateProcess(timeout_s))


def template_source(path: Path) -> str:
    """The chat template that a model folder has for requests with tools; empty if it has none."""
    templates = _templates(path)
    return templates.get("tool_use") or templates.get("default") or ""


def has_chat_template(path: Path) -> bool:
    """Whether the model in a folder or GGUF file takes conversations without tools."""
    return "default" in _templates(path)


def _templates(path: Path) -> dict[str, str]:
    """By name; one that is empty is none."""
    if is_gguf(path):
        return _gguf_templates(read_gguf(path).metadata)
    tokenizer = _config_templates(read_tokenizer_config(path), "tokenizer_config.json")
    if templates := tokenizer | _template_files(path):
        return templates
    # Where the processors of models for images and sound have theirs.
    processor = path / "chat_template.json"
    if templates := _config_templates(read_json(processor), processor.name):
        return templates
    if not (path / TEKKEN_FILE).is_file():
        return {}
    template = mistral_template(chat_format(path / TEKKEN_FILE))
    return {"default": template} if template else {}


def _gguf_templates(metadata: dict[str, Any]) -> dict[str, str]:
    key = "tokenizer.chat_template"
    templates = {
        "default" if name == key else name.removeprefix(f"{key}."): template
        for name, template in metadata.items()
        if (name == key or name.startswith(f"{key}.")) and template != ""
    }
    if not all(isinstance(template, str) for template in templates.values()):
        raise ModelLoadError("A chat template of the GGUF file is not a text.")
    return templates


def _template_files(path: Path) -> dict[str, str]:
    files = {"default": path / "chat_template.jinja"}
    files |= {file.stem: file for file in path.glob("additional_chat_templates/*.jinja")}
    try:
        templates = {name: file.read_text() for name, file in files.items() if file.is_file()}
    except UnicodeDecodeError:
        raise ModelLoadError("A chat template of the model is not UTF-8 text.") from None
    return {name: template for name, template in templates.items() if template}


def _config_templates(config: dict[str, Any], file: str) -> dict[str, str]:
    templates = config.get("chat_template")
    if not templates:
        return {}
    if isinstance(templates, str):
        return {"default": templates}
    try:
        return msgspec.convert(
            {template["name"]: template["template"] for template in templates}, dict[str, str]
        )
    except (TypeError, KeyError, msgspec.ValidationError):
        raise ModelLoadError(
            f"chat_template in {file} must be a string, or a list of objects with name and "
            "template."
        ) from None


def _described(description: dict[str, Any]) -> dict[str, Any]:
    return description | {"variables": frozenset(description["variables"])}


def _normalize(message: Message, param: str, template: _Template) -> Message:
    message = {name: value for name, value in message.items() if value is not None}
    if message.get("tool_calls") and "tool_calls" in template.source:
        # Templates that test for null, for absence or for neither all take an empty text.
        message.setdefault("content", "")
    if "content" in message:
        message["content"] = _content(message["content"], f"{param}.content", template)
    if message.get("tool_calls"):
        message["tool_calls"] = [
            _tool_call(call, f"{param}.tool_calls[{i}]", as_text=template.joins_arguments)
            for i, call in enumerate(message["tool_calls"])
        ]
    return message


def _content(content: Any, param: str, template: _Template) -> Any:
    if isinstance(content, str):
        wrap = template.reads_parts and not template.reads_strings
        return [{"type": "text", "text": content}] if wrap else content
    texts = [_text(part, f"{param}[{i}]") for i, part in enumerate(content)]
    if template.reads_parts:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _text(part: dict[str, Any], param: str) -> str:
    text = part.get("refusal" if part.get("type") == "refusal" else "text")
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"This model takes text only, got a part of type {part.get('type')!r}.", param=param
        )
    return text


def _tool_call(call: dict[str, Any], param: str, *, as_text: bool) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            "The arguments of a tool call must be a JSON object.",
            param=f"{param}.function.arguments",
        )
    text = function["arguments"] or "{}"
    return call | {"function": function | {"arguments": text if as_text else arguments}}
