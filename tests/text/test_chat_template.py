from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from axion.errors import InvalidRequestError, ModelLoadError
from axion.text import chat_template
from axion.text.chat_template import ChatTemplate, has_chat_template, load_chat_template
from axion.text.template_process import TemplateProcess
from axion.text.tokenizer import load_tokenizer

from .conftest import ModelFolder

TEMPLATES = {
    file.stem: file.read_text() for file in (Path(__file__).parent / "templates").iterdir()
}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM = {"role": "system", "content": " Be brief & <kind>. "}
USER = {"role": "user", "content": " What is 2 + 3? é😀 \n"}
ASSISTANT = {"role": "assistant", "content": "<think>easy</think>\nSix."}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "multiply", "arguments": '{"a": 2, "b": 3}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "6"}
TOOL = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "é, <exactly> & 'always'",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "turns": [USER, ASSISTANT, USER],
    "system": [SYSTEM, USER, ASSISTANT, USER],
    "answer": [USER, ASSISTANT],
    "tools": [SYSTEM, USER, CALL, RESULT],
}


def template_of(source: str, process: TemplateProcess) -> ChatTemplate:
    return ChatTemplate({"default": source}, SPECIAL_TOKENS, process)


@pytest.fixture
def chat(template_process: TemplateProcess) -> Any:
    return lambda name: template_of(TEMPLATES[name], template_process)


def transformers_render(source: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
    parsed = [
        {
            **{name: value for name, value in message.items() if value is not None},
            **(
                {"tool_calls": [{"function": {"name": "multiply", "arguments": {"a": 2, "b": 3}}}]}
                if message is CALL
                else {}
            ),
        }
        for message in messages
    ]
    (text,), _ = render_jinja_template(
        [parsed], chat_template=source, **SPECIAL_TOKENS, **arguments
    )
    return str(text)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"parts_only"}))
def test_prompts_equal_transformers(chat: Any, name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    variants: list[dict[str, Any]] = [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"tools": [TOOL], "add_generation_prompt": True},
        {"documents": [{"title": "t", "text": "x"}], "add_generation_prompt": True},
        {"continue_final_message": True, "add_generation_prompt": False},
    ]
    for arguments in variants:
        try:
            expected = transformers_render(TEMPLATES[name], messages, **arguments)
        except Exception:
            with pytest.raises(InvalidRequestError):
                chat(name).render(messages, **arguments)
        else:
            assert chat(name).render(messages, **arguments) == expected


def test_a_prompt_as_the_model_was_trained_on(chat: Any) -> None:
    assert chat("chatml").render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert '"arguments": {"a": 2, "b": 3}}' in chat("qwen").render([USER, CALL, RESULT])


def test_the_final_message_is_continued(chat: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good"}]
    prompt = chat("chatml").render(
        messages, continue_final_message=True, add_generation_prompt=False
    )
    assert prompt.endswith("<|im_start|>assistant\nGood")
    with pytest.raises(InvalidRequestError, match="add_generation_prompt"):
        chat("chatml").render(messages, continue_final_message=True)


def test_what_the_template_raises_is_the_clients_error(chat: Any) -> None:
    with pytest.raises(InvalidRequestError, match="System role not supported") as caught:
        chat("gemma").render([SYSTEM, USER])
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequestError, match="has no attribute 'content'"):
        chat("chatml").render([{"role": "user"}])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_start|>user\none\ntwo<|im_end|>\n"),  # joined for it
        ("gemma3", "<s><start_of_turn>user\nonetwo<end_of_turn>\n"),  # joins them itself
        ("parts_only", "user: onetwo\n"),
    ],
)
def test_text_parts_reach_the_template_in_the_form_that_it_reads(
    chat: Any, name: str, expected: str
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}]
    assert chat(name).render(messages, add_generation_prompt=False) == expected


def test_a_string_reaches_a_template_that_reads_only_parts(chat: Any) -> None:
    assert chat("parts_only").render([{"role": "user", "content": "one"}]) == "user: one\n"


def test_other_parts_than_text_are_refused_by_place(chat: Any) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://localhost/cat.png"}}
    with pytest.raises(InvalidRequestError, match="image_url") as caught:
        chat("chatml").render([USER, {"role": "user", "content": [image]}])
    assert caught.value.param == "messages[1].content[0]"


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', "[" * 100_000])
def test_arguments_of_a_tool_call_must_be_a_json_object(chat: Any, arguments: str) -> None:
    call = {"function": {"name": "multiply", "arguments": arguments}}
    with pytest.raises(InvalidRequestError, match="JSON object") as caught:
        chat("qwen").render([USER, {"role": "assistant", "tool_calls": [call]}])
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize("join", ["'|' + {}", "'|' ~ {}"])
@pytest.mark.parametrize("name", ["call.function.arguments", "call['function']['arguments']"])
def test_a_template_that_joins_arguments_to_text_gets_them_as_text(
    template_process: TemplateProcess, join: str, name: str
) -> None:
    source = (
        "{% for message in messages %}{{ message['content'] + '' }}"
        "{% for call in message['tool_calls'] %}{% if looks %}{% endif %}"
        f"{{{{ {join.format(name)} }}}}{{% endfor %}}{{% endfor %}}"
    )
    assert template_of(source, template_process).render([CALL]) == '|{"a": 2, "b": 3}'
    looks = source.replace("looks", f"{name} is string").replace(join.format(name), f"{name}.a")
    assert template_of(looks, template_process).render([CALL]) == "2"


def test_the_callers_messages_stay_as_they_are(chat: Any) -> None:
    chat("qwen").render([USER, CALL, RESULT])
    assert CALL["content"] is None
    assert CALL["tool_calls"][0]["function"]["arguments"] == '{"a": 2, "b": 3}'


def test_variables_that_the_template_reads_can_be_set_and_others_do_nothing(chat: Any) -> None:
    def render(**variables: Any) -> str:
        return str(chat("qwen").render([USER], template_kwargs=variables))

    assert render(enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert render(reasoning_effort="low", raise_exception="x", namespace=1) == render()


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
     "chat_template", "conversations", "tokenizer", "tokenize", "bos_token", "eos_token"],
)  # fmt: skip
def test_variables_of_a_request_override_nothing_of_the_servers(chat: Any, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        chat("llama3").render([USER], template_kwargs={name: "x"})
    assert caught.value.param == "chat_template_kwargs"


def test_an_empty_conversation_is_refused(chat: Any) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        chat("chatml").render([])


def test_a_template_cannot_change_the_next_conversation(chat: Any) -> None:
    source = "{% set _ = namespace(n=1) %}{{ messages | length }}"
    template = template_of(source, chat("chatml")._process)
    assert [template.render([USER] * n) for n in (1, 2, 1)] == ["1", "2", "1"]


async def test_rendering_does_not_hold_the_event_loop() -> None:
    process = TemplateProcess(timeout_s=0.5)
    template = template_of(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", process
    )
    rendering = asyncio.create_task(asyncio.to_thread(template.render, [USER]))
    turns = 0
    while not rendering.done():
        turns += 1
        await asyncio.sleep(0)
    with pytest.raises(InvalidRequestError, match="longer than"):
        await rendering
    assert turns > 100
    template.close()


class TestLoading:
    @pytest.fixture(autouse=True)
    def shared(self, monkeypatch: pytest.MonkeyPatch, template_process: TemplateProcess) -> None:
        """One process for all, of which each that is started costs a second."""
        monkeypatch.setattr(chat_template, "TemplateProcess", lambda timeout_s: template_process)

    def load(self, folder: ModelFolder) -> ChatTemplate | None:
        return load_chat_template(folder.path, load_tokenizer(folder.path))

    def prompt(self, folder: ModelFolder, **arguments: Any) -> str:
        template = self.load(folder)
        assert template is not None
        return template.render([USER], **arguments)

    def test_a_folder_without_a_template_has_none(self, model_folder: ModelFolder) -> None:
        assert self.load(model_folder) is None

    def test_one_that_is_empty_is_none(self, model_folder: ModelFolder) -> None:
        model_folder.write("tokenizer_config.json", {"chat_template": ""})
        (model_folder.path / "chat_template.jinja").write_text("")
        assert self.load(model_folder) is None

    def test_the_config_has_it_with_the_tokenizers_special_tokens(
        self, model_folder: ModelFolder
    ) -> None:
        config = {"chat_template": "{{ bos_token }}config", "bos_token": "<|bos|>"}
        model_folder.write("tokenizer_config.json", config)
        assert self.prompt(model_folder) == "<|bos|>config"

    def test_the_file_comes_before_the_config(self, model_folder: ModelFolder) -> None:
        model_folder.write("tokenizer_config.json", {"chat_template": "config"})
        model_folder.write("chat_template.jinja", "file")
        assert self.prompt(model_folder) == "file"

    def test_requests_with_tools_take_the_template_for_tools(
        self, model_folder: ModelFolder
    ) -> None:
        named = [
            {"name": "default", "template": "default"},
            {"name": "tool_use", "template": "tools"},
        ]
        model_folder.write("tokenizer_config.json", {"chat_template": named})
        assert self.prompt(model_folder) == "default"
        assert self.prompt(model_folder, tools=[]) == "default"
        assert self.prompt(model_folder, tools=[TOOL]) == "tools"

    def test_without_a_default_there_is_chat_for_requests_with_tools_alone(
        self, model_folder: ModelFolder
    ) -> None:
        named = [{"name": "tool_use", "template": "tools"}, {"name": "rag", "template": "rag"}]
        model_folder.write("tokenizer_config.json", {"chat_template": named})
        assert self.prompt(model_folder, tools=[TOOL]) == "tools"
        with pytest.raises(InvalidRequestError, match=r"named rag, tool_use, .* without tools"):
            self.prompt(model_folder)
        assert not has_chat_template(model_folder.path)

    def test_named_templates_come_from_a_folder_too(self, model_folder: ModelFolder) -> None:
        model_folder.write("chat_template.jinja", "default")
        model_folder.write("additional_chat_templates/tool_use.jinja", "tools")
        assert self.prompt(model_folder, tools=[TOOL]) == "tools"

    def test_named_files_add_to_the_config(self, model_folder: ModelFolder) -> None:
        model_folder.write("tokenizer_config.json", {"chat_template": "default"})
        model_folder.write("additional_chat_templates/tool_use.jinja", "tools")
        assert self.prompt(model_folder) == "default"
        assert self.prompt(model_folder, tools=[TOOL]) == "tools"

    @pytest.mark.parametrize(("config", "said"), [({}, "processor"), ({"chat_template": "x"}, "x")])
    def test_a_processors_template_is_taken_where_the_tokenizer_has_none(
        self, model_folder: ModelFolder, config: dict[str, Any], said: str
    ) -> None:
        model_folder.write("tokenizer_config.json", config)
        model_folder.write("chat_template.json", {"chat_template": "processor"})
        assert self.prompt(model_folder) == said

    @pytest.mark.parametrize(
        ("chat_template", "message"),
        [
            ("{% if %}", "syntax error in line 1"),
            ([{"name": "default"}], "name and template"),
            (3, "must be a string"),
        ],
    )
    def test_a_faulty_template_fails_at_load(
        self, model_folder: ModelFolder, chat_template: Any, message: str
    ) -> None:
        model_folder.write("tokenizer_config.json", {"chat_template": chat_template})
        with pytest.raises(ModelLoadError, match=message):
            self.load(model_folder)
