"""How byte-level tokenizers write bytes: each is one printable character of a token's name."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (github.com/openai/gpt-2, `encoder.py`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


BYTE_ALPHABET = _alphabet()
_CHARACTERS = {byte: char for char, byte in BYTE_ALPHABET.items()}


def from_alphabet(token: str) -> bytes:
    """Raises: KeyError: a character stands for no byte."""
    return bytes(BYTE_ALPHABET[char] for char in token)


def to_alphabet(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)
