from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.errors import InvalidRequestError
from axion.openai.parsing import parse_request
from axion.openai.tokenize import DetokenizeRequest, TokenizeRequest
from tests.openai.test_parsing import json_values


@given(st.data())
@pytest.mark.parametrize("model", [TokenizeRequest, DetokenizeRequest])
def test_any_json_is_a_request_or_a_400(model: Any, data: st.DataObject):
    fields = st.dictionaries(st.sampled_from(sorted(model.model_fields)), json_values, max_size=4)
    body = json.dumps(data.draw(fields | json_values)).encode()
    message = ""
    try:
        request = parse_request(model, body)
        if isinstance(request, TokenizeRequest):
            request.chat_or_text()
    except InvalidRequestError as error:
        message = error.message
    assert len(message) < 500
    assert message.isprintable()


def test_a_conversation_keeps_its_fields():
    messages = [{"role": "user", "content": "Hi."}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    chat = parse_request(TokenizeRequest, json.dumps(body).encode()).chat_or_text()
    assert not isinstance(chat, str)
    assert chat.template_messages() == messages
    assert chat.continue_final_message
    assert chat.add_generation_prompt is False
