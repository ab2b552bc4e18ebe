from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import BPE

from axion.errors import InternalError, InvalidRequestError, ModelLoadError
from axion.text.tokenizer import Tokenizer, load_tokenizer

from .conftest import SENTENCES, ModelFolder, Pair, added_token, byte_level

texts = st.lists(
    st.one_of(st.sampled_from([*SENTENCES, " ", "😀"]), st.text(max_size=12)), max_size=4
).map("".join)


@given(text=texts)
def test_encode_and_decode_are_the_librarys(pair: Pair, text: str) -> None:
    for special in (True, False):
        ids = pair.library.encode(text, add_special_tokens=special).ids
        assert pair.ours.encode(text, add_special_tokens=special) == ids
        skipped = pair.ours.decode(ids, skip_special_tokens=special)
        assert skipped == pair.library.decode(ids, skip_special_tokens=special)


@given(text=texts)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(byte_pair: Pair, text: str) -> None:
    ids = byte_pair.ours.encode(text, add_special_tokens=False)
    data = b"".join(map(byte_pair.ours.id_to_token_bytes, ids))
    assert data.removeprefix(b" " if byte_pair.ours.strips_leading_space else b"") == text.encode()


@given(text=texts, repeat=st.integers(1, 9))
def test_no_text_has_fewer_tokens_than_the_bound(pair: Pair, text: str, repeat: int) -> None:
    text *= repeat
    assert pair.ours.fewest_tokens(text) <= len(pair.ours.encode(text, add_special_tokens=False))


def test_the_bound_is_that_of_the_longest_token(
    byte_level_tokenizer: Tokenizer, llama2_tokenizer: Tokenizer
) -> None:
    assert byte_level_tokenizer.fewest_tokens("a" * len("<|im_start|>") * 50 + "a") == 51
    assert llama2_tokenizer.fewest_tokens("a" * len("<0x00>") * 50) == 50
    assert byte_level_tokenizer.fewest_tokens("") == 0


def test_composed_characters_do_not_deceive_the_bound() -> None:
    library = byte_level()
    library.normalizer = normalizers.NFC()
    tokenizer = Tokenizer(library)
    text = "\u03b1\u0313\u0300\u0345" * 1000  # four characters that become one
    assert 0 < tokenizer.fewest_tokens(text) < len(tokenizer.encode(text))


def _strips(library: tokenizers.Tokenizer) -> None:
    library.normalizer = normalizers.Strip()


def _shortens(library: tokenizers.Tokenizer) -> None:
    library.normalizer = normalizers.Replace("  ", " ")


def _drops_spaces(library: tokenizers.Tokenizer) -> None:
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _swallows_spaces(library: tokenizers.Tokenizer) -> None:
    library.add_special_tokens([tokenizers.AddedToken("<|end|>", rstrip=True)])


@pytest.mark.parametrize("change", [_strips, _shortens, _drops_spaces, _swallows_spaces])
def test_where_characters_can_vanish_there_is_no_bound(
    change: Callable[[tokenizers.Tokenizer], None],
) -> None:
    library = byte_level()
    change(library)
    assert Tokenizer(library).fewest_tokens(" " * 10**6) == 0


def test_encoding_lets_other_threads_run(byte_level_tokenizer: Tokenizer) -> None:
    with ThreadPoolExecutor() as pool:
        encoding = pool.submit(byte_level_tokenizer.encode, SENTENCES[0] * 10_000)
        turns = 0
        while not encoding.done():
            turns += 1
            time.sleep(0)
    assert turns > 100


def test_a_byte_token_is_its_byte(llama2_tokenizer: Tokenizer) -> None:
    def data(token: str) -> bytes:
        id = llama2_tokenizer.token_to_id(token)
        assert id is not None
        return llama2_tokenizer.id_to_token_bytes(id)

    assert data("<0xE4>") == b"\xe4"
    assert data("▁the") == b" the"
    assert data("</s>") == b"</s>"


def test_added_and_special_tokens_are_their_text(byte_level_tokenizer: Tokenizer) -> None:
    for token in ("<|im_start|>", "<tool_call>", "café"):
        id = byte_level_tokenizer.token_to_id(token)
        assert id is not None
        assert byte_level_tokenizer.id_to_token_bytes(id) == token.encode()


def test_ids_above_the_vocabulary_have_no_text(pair: Pair) -> None:
    ids = pair.ours.encode("Hello", add_special_tokens=False)
    padded = [*ids, pair.ours.vocab_size, 2**31 - 1]
    assert pair.ours.decode(padded) == pair.ours.decode(ids)
    assert pair.ours.id_to_token_bytes(2**31 - 1) == b""


def test_special_tokens_are_read_in_every_form(model_folder: ModelFolder) -> None:
    model_folder.write("special_tokens_map.json", {"pad_token": {"content": "<|im_end|>"}})
    model_folder.write(
        "tokenizer_config.json",
        {
            "bos_token": added_token("<|bos|>"),
            "eos_token": "<|im_end|>",
            "unk_token": None,
            "add_bos_token": True,
            "extra_special_tokens": {"tool_token": "<tool_call>"},
        },
    )
    tokenizer = load_tokenizer(model_folder.path)
    assert tokenizer.bos_token == "<|bos|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.special_tokens == {
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "tool_token": "<tool_call>",
    }


def test_a_token_that_only_the_config_calls_special_is_one(model_folder: ModelFolder) -> None:
    model_folder.write("tokenizer_config.json", {"eos_token": "<tool_call>"})
    tokenizer = load_tokenizer(model_folder.path)
    assert tokenizer.token_to_id("<tool_call>") in tokenizer.special_token_ids
    assert tokenizer.decode(tokenizer.encode("a<tool_call>b")) == "ab"


def test_a_special_token_outside_the_vocabulary_adds_no_id(model_folder: ModelFolder) -> None:
    model_folder.write("tokenizer_config.json", {"pad_token": "<pad>"})
    tokenizer = load_tokenizer(model_folder.path)
    assert tokenizer.vocab_size == byte_level().get_vocab_size(with_added_tokens=True)
    assert tokenizer.token_to_id("<pad>") is None


def test_a_rendered_chat_gets_no_second_bos(byte_level_tokenizer: Tokenizer) -> None:
    bos = byte_level_tokenizer.token_to_id("<|bos|>")
    assert bos is not None
    assert byte_level_tokenizer.encode("hi").count(bos) == 1
    assert byte_level_tokenizer.encode_chat("<|bos|>hi").count(bos) == 1


def test_truncation_and_padding_of_training_are_off(model_folder: ModelFolder) -> None:
    library = byte_level()
    library.enable_truncation(4)
    library.enable_padding(length=4)
    library.save(str(model_folder.path / "tokenizer.json"))
    tokenizer = load_tokenizer(model_folder.path)
    assert tokenizer.decode(tokenizer.encode(SENTENCES[0])) == SENTENCES[0]
    assert len(tokenizer.encode("")) == 1


def test_threads_encode_at_once(byte_level_tokenizer: Tokenizer) -> None:
    texts = [f"{sentence} {i}" for i in range(50) for sentence in SENTENCES]
    expected = [byte_level_tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(byte_level_tokenizer.encode, texts)) == expected


def test_what_is_not_unicode_is_the_clients_error(byte_level_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate"):
        byte_level_tokenizer.encode("a\ud800")


def test_a_table_that_leads_the_library_astray_is_refused_and_fails_one_request(
    model_folder: ModelFolder,
) -> None:
    trie = b"\xff\xff\xff\xff\xff\xff\xff\x7f" * 2
    table = len(trie).to_bytes(4, "little") + trie + b"a\0"
    library = tokenizers.Tokenizer(BPE())
    library.normalizer = normalizers.Precompiled(table)
    with pytest.raises(InternalError, match="failed on this text"):
        Tokenizer(library).encode("abc")

    file = json.loads((model_folder.path / "tokenizer.json").read_bytes())
    encoded = base64.b64encode(table).decode()
    file["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": encoded}
    model_folder.write("tokenizer.json", file)
    with pytest.raises(ModelLoadError, match="tokenizer is damaged"):
        load_tokenizer(model_folder.path)


@pytest.mark.parametrize("name", ["README.md", "vocab.json"])
def test_a_folder_without_a_tokenizer_is_refused_with_what_would_do(
    model_folder: ModelFolder, name: str
) -> None:
    (model_folder.path / "tokenizer.json").unlink()
    model_folder.write(name, "")
    with pytest.raises(ModelLoadError, match=r"has no tokenizer.*save_pretrained") as caught:
        load_tokenizer(model_folder.path)
    assert ("vocab.json" in caught.value.message) == (name == "vocab.json")
    assert str(model_folder.path) not in caught.value.message


def test_tokenizer_json_comes_before_other_files(model_folder: ModelFolder) -> None:
    for name in ("tokenizer.model", "tekken.json", "qwen.tiktoken"):
        model_folder.write(name, "damaged")
    assert load_tokenizer(model_folder.path).decode([65])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_is_named(model_folder: ModelFolder, name: str, content: str) -> None:
    model_folder.write(name, content)
    with pytest.raises(ModelLoadError, match=name):
        load_tokenizer(model_folder.path)


def test_the_text_package_imports_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, axion.text.chat_template, axion.text.detokenizer, axion.text.stop;"
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
