"""Texts on which a tokenizer must agree with the library whose file it was made of."""

from __future__ import annotations

import random

from axion.text.tokenizer import Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Hello, how are you today? I'm fine, thank you. It's 12345 o'clock.",
    "def main():\n    return  x ** 2  # done\n\n\n\tend\r\n",
    "你好世界。今天天气很好。日本語のテキスト、한국어도.",
    "مرحبا بالعالم، كيف حالك؟ Привет, мир! שלום",
    "Emoji 😀 and 👨‍👩‍👧‍👦 and flags 🇪🇺.",
    "café naïve Å ÅNGSTRÖM ﬁne ½ ①",
    "<s>[INST] not special [/INST]</s><0x41><unk>",
    "  two   spaces    and more                     and a \u00a0 \u3000 wide one ",
    "aaaaaaaaaaaaaaaaaaaaaa bbbbbbbabababab 000000 ....,,,,,------",
]


def corpus() -> list[str]:
    rng = random.Random(7)
    texts = ["", " ", "a", " a", "a ", "\n", *SENTENCES, " ".join(SENTENCES)]
    alphabets = [
        "ab  \n\t.,0123aAeE'",
        "".join(map(chr, range(32, 127))),
        "".join(map(chr, range(0x20, 0x250))),
        "你好世界 今天\u200b\u3000。",
        "😀👨‍🇪🇺 \u0301e\u0308",
    ]
    for _ in range(300):
        alphabet = rng.choice(alphabets)
        texts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 50))))
        texts.append("".join(rng.choice(SENTENCES)[: rng.randint(1, 40)] for _ in range(3)))
    return texts


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which special tokens are only text, as those libraries have it."""
    library = tokenizer._tokenizer
    library.encode_special_tokens = True
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    finally:
        library.encode_special_tokens = False
