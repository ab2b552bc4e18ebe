from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from axion.text.detokenizer import IncrementalDetokenizer
from axion.text.tokenizer import Tokenizer

from .conftest import SENTENCES, Pair, byte_level

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
texts = st.lists(
    st.one_of(st.sampled_from([*SENTENCES, "😀", "  ", "café<tool_call>"]), st.text(max_size=10)),
    max_size=4,
).map(lambda pieces: "".join(pieces).replace(REPLACEMENT, ""))


def stream(detokenizer: IncrementalDetokenizer, ids: list[int]) -> str:
    return "".join([*(detokenizer.push([id]) for id in ids), detokenizer.flush()])


@given(data=st.data(), skip=st.booleans())
def test_any_tokens_in_any_chunks_give_the_text_of_the_whole(
    pair: Pair, data: st.DataObject, skip: bool
) -> None:
    tokenizer = pair.ours
    id_lists = st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=8)
    chunks = data.draw(st.lists(id_lists, max_size=5))
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    text = "".join([*map(detokenizer.push, chunks), detokenizer.flush()])
    assert text == tokenizer.decode(chain(*chunks), skip_special_tokens=skip)


@given(text=texts, data=st.data())
def test_prompt_and_answer_together_are_the_text_wherever_it_is_cut(
    byte_pair: Pair, text: str, data: st.DataObject
) -> None:
    ids = byte_pair.library.encode(text).ids
    special = map(byte_pair.ours.id_to_token, byte_pair.ours.special_token_ids)
    assume(not any(token and token in text for token in special))  # `<s>` is left out of texts
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = IncrementalDetokenizer(byte_pair.ours, prompt_token_ids=ids[:cut])
    answer = stream(detokenizer, ids[cut:])
    # A character that the prompt began and the answer completes is the answer's.
    prompt = byte_pair.ours.decode(ids[:cut]).rstrip(REPLACEMENT)
    assert prompt + answer == text


@given(text=texts)
def test_no_character_is_shown_before_it_is_whole(byte_pair: Pair, text: str) -> None:
    ids = byte_pair.library.encode(text).ids
    detokenizer = IncrementalDetokenizer(byte_pair.ours)
    assert all(REPLACEMENT not in detokenizer.push([id]) for id in ids)
    assert detokenizer.flush() == ""


def tokens_of(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token a byte."""
    by_bytes = {tokenizer.id_to_token_bytes(id): id for id in range(tokenizer.vocab_size)}
    return [by_bytes[bytes([byte])] for byte in data]


def test_a_broken_character_at_the_end_is_a_replacement_character(byte_pair: Pair) -> None:
    ids = tokens_of(byte_pair.ours, "né😀".encode()[:-1])
    detokenizer = IncrementalDetokenizer(byte_pair.ours)
    assert detokenizer.push(ids) == "né"
    assert detokenizer.flush() == REPLACEMENT


def test_the_answer_never_has_the_text_of_a_prompt_that_ends_inside_a_character(
    byte_pair: Pair,
) -> None:
    prompt = tokens_of(byte_pair.ours, "secret 😀".encode()[:-2])

    def answer(data: bytes) -> str:
        detokenizer = IncrementalDetokenizer(byte_pair.ours, prompt_token_ids=prompt)
        return stream(detokenizer, tokens_of(byte_pair.ours, data))

    assert answer(b"") == ""
    assert answer("😀".encode()[-2:] + b"!") == "😀!"
    assert answer(b"!") == "!"
    assert answer(b"\x98!") == "!"


def test_bytes_that_cannot_become_text_do_not_hold_back_what_follows(byte_pair: Pair) -> None:
    detokenizer = IncrementalDetokenizer(byte_pair.ours)
    assert detokenizer.push(tokens_of(byte_pair.ours, b"\xff\x80")) == 2 * REPLACEMENT
    assert detokenizer.push(tokens_of(byte_pair.ours, "é".encode())) == "é"


def test_a_special_token_inside_a_character_does_not_break_it(byte_pair: Pair) -> None:
    first, *others = tokens_of(byte_pair.ours, "😀".encode())
    special = min(byte_pair.ours.special_token_ids)
    assert stream(IncrementalDetokenizer(byte_pair.ours), [first, special, *others]) == "😀"


def test_special_tokens_are_shown_when_asked_for(byte_level_tokenizer: Tokenizer) -> None:
    ids = byte_level_tokenizer.encode("hi<|im_end|>")
    detokenizer = IncrementalDetokenizer(byte_level_tokenizer, skip_special_tokens=False)
    assert stream(detokenizer, ids) == "<|bos|>hi<|im_end|>"


def test_some_special_tokens_can_stay_visible(byte_level_tokenizer: Tokenizer) -> None:
    ids = byte_level_tokenizer.encode("hi<|im_start|><|im_end|>")
    visible = [byte_level_tokenizer.token_to_id("<|im_end|>")]
    detokenizer = IncrementalDetokenizer(byte_level_tokenizer, visible_token_ids=visible)
    assert stream(detokenizer, ids) == "hi<|im_end|>"


@pytest.mark.parametrize(("prompt", "answer"), [("", "Hello"), ("The end.", " Hello")])
def test_sentencepiece_strips_the_space_of_a_text_not_of_a_continuation(
    llama2_tokenizer: Tokenizer, prompt: str, answer: str
) -> None:
    prompt_ids = llama2_tokenizer.encode(prompt)
    output_ids = llama2_tokenizer.encode("Hello", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(llama2_tokenizer, prompt_token_ids=prompt_ids)
    assert stream(detokenizer, output_ids) == answer


def test_the_work_grows_with_the_tokens_not_with_their_square() -> None:
    class CountingTokenizer(Tokenizer):
        num_tokens = 0

        def bytes_of(self, ids: Iterable[int], *, skip_special_tokens: bool) -> bytes:
            ids = list(ids)
            self.num_tokens += len(ids)
            return super().bytes_of(ids, skip_special_tokens=skip_special_tokens)

    tokenizer = CountingTokenizer(byte_level())
    ids = tokenizer.encode("Emoji 😀 and 你好. " * 100)
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=ids)
    tokenizer.num_tokens = 0
    stream(detokenizer, ids)
    assert tokenizer.num_tokens == len(ids)
