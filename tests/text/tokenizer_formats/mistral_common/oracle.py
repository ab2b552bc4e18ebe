"""What mistral-common makes of texts and chats: JSON on standard input and output.

Files may be named relative to mistral-common's own data.
"""

from __future__ import annotations

import json
import sys

from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer


def answer(request: dict) -> dict:
    tokenizer = MistralTokenizer.from_file(MistralTokenizer._data_path() / request["file"])
    plain = tokenizer.instruct_tokenizer.tokenizer
    return {
        "texts": [plain.encode(text, bos=True, eos=False) for text in request["texts"]],
        "chats": [
            tokenizer.encode_chat_completion(
                ChatCompletionRequest.from_openai(
                    messages=chat["messages"], tools=chat.get("tools")
                )
            ).tokens
            for chat in request["chats"]
        ],
    }


print(json.dumps([answer(request) for request in json.load(sys.stdin)]))
