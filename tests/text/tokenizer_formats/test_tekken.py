"""Mistral's own tokenizers, and the chats that mistral-common makes of messages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from axion.errors import InvalidRequestError, ModelLoadError
from axion.text.answer_format import answer_format
from axion.text.chat_template import ChatTemplate, load_chat_template, template_source
from axion.text.mistral_template import mistral_template
from axion.text.template_process import TemplateProcess
from axion.text.tokenizer import load_tokenizer
from axion.text.tokenizer_formats import tekken
from axion.text.tokenizer_formats.tekken import ChatFormat
from axion.text.tool_calls.mistral import Mistral, MistralArgs
from tests.clients.conftest import install

from .conftest import corpus, plain_ids

HERE = Path(__file__).parent / "mistral_common"
pytestmark = pytest.mark.timeout(300)  # the first run installs

VERSIONS = ["v3", "v7", "v11", "v13", "v15"]
# Since v11 the file lists them.
LATER_SPECIAL_TOKENS = ["[AUDIO]", "[BEGIN_AUDIO]", "[ARGS]", "[CALL_ID]"]
EFFORT = {"type": "enum", "values": ["none", "high"], "accepts_none": True, "default": "none"}
NUM_SPECIAL, NUM_RANKS = 40, 8000
SENTENCEPIECE = "sentencepiece"
FILES = {tekken.FILE, "mistral_instruct_tokenizer_240323.model.v3"}

CALL_A = {"id": "a00000001", "type": "function"} | {
    "function": {"name": "get_weather", "arguments": '{"city":"Zürich", "days": 2}'}
}
CALL_B = {"id": "b00000002", "type": "function"} | {"function": {"name": "now", "arguments": "{}"}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "é, <exactly> & 'always'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]


def say(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def result(id: str, content: str) -> dict[str, Any]:
    return say("tool", content, tool_call_id=id, name="x")


SYSTEM = say("system", " Be brief & <kind>. ")
HELLO, FINE = say("user", " Hello 你好 \n"), say("assistant", " Fine.  ")
CHATS: dict[str, dict[str, Any]] = {
    "user": {"messages": [HELLO]},
    "turns": {"messages": [HELLO, FINE, say("user", "And you?")]},
    "system": {"messages": [SYSTEM, HELLO, FINE, say("user", "And you?")]},
    "systems": {"messages": [SYSTEM, say("system", "Really."), HELLO]},
    "rows": {"messages": [HELLO, say("user", "again"), FINE, HELLO, say("user", "x")]},
    "tools": {"messages": [SYSTEM, HELLO, FINE, HELLO], "tools": TOOLS},
    "call": {
        "messages": [
            HELLO,
            say("assistant", None, tool_calls=[CALL_A]),
            result("a00000001", "18°"),
        ],
        "tools": TOOLS,
    },
    "calls": {
        "messages": [
            SYSTEM,
            HELLO,
            say("assistant", None, tool_calls=[CALL_A, CALL_B]),
            result("b00000002", '{"time": [1, null, "x"]}'),
            result("a00000001", "18.5"),
            say("assistant", "Done."),
            say("user", "Thanks"),
        ],
        "tools": TOOLS,
    },
}


def save_tekken(full: dict[str, Any], folder: Path, version: str) -> None:
    """A file of a version, with the first of Mistral's tokens."""
    file = dict(full)
    file["vocab"] = full["vocab"][:NUM_RANKS]
    file["config"] = full["config"] | {
        "version": version,
        "default_vocab_size": NUM_RANKS + NUM_SPECIAL,
        "default_num_special_tokens": NUM_SPECIAL,
    }
    if version not in ("v3", "v7"):
        thinking = ["[THINK]", "[/THINK]"] if version in ("v13", "v15") else []
        if version == "v15":
            thinking += ["[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"]
            file["model_settings_builder"] = {"reasoning_effort": EFFORT}
        tokens = [*tekken._FIRST_SPECIAL_TOKENS, *LATER_SPECIAL_TOKENS, *thinking]
        file["special_tokens"] = [
            {"rank": rank, "token_str": token, "is_control": True}
            for rank, token in enumerate(tokens)
        ]
    (folder / tekken.FILE).write_text(json.dumps(file))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mistral's own files: a sentencepiece model, and the beginning of a tekken in each version."""
    packages = install(
        HERE / "requirements.txt",
        *(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--retries=1"),
        *("--no-deps", "--no-compile", "--target", ".", "--requirement", "requirements.txt"),
    )
    data = packages / "mistral_common" / "data"
    full = json.loads((data / "tekken_240718.json").read_bytes())
    found = {}
    for name in (SENTENCEPIECE, *VERSIONS):
        found[name] = folder = tmp_path_factory.mktemp(name)
        (folder / "packages").symlink_to(packages)
        if name == SENTENCEPIECE:
            file = data / "mistral_instruct_tokenizer_240323.model.v3"
            shutil.copy(file, folder / "tokenizer.model")
            shutil.copy(file, folder)  # mistral-common reads the version off the name
        else:
            save_tekken(full, folder, name)
    return found


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What mistral-common makes of the corpus and the chats."""
    requests = [
        {
            "file": str(next(file for file in folder.iterdir() if file.name in FILES)),
            "texts": corpus(),
            "chats": list(CHATS.values()) if name in VERSIONS else [],
        }
        for name, folder in folders.items()
    ]
    done = subprocess.run(
        [sys.executable, HERE / "oracle.py"],
        input=json.dumps(requests),
        env={**os.environ, "PYTHONPATH": str(folders[SENTENCEPIECE] / "packages")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(folders, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", [SENTENCEPIECE, "v3"])
def test_ids_and_texts_are_mistrals(
    folders: dict[str, Path], answers: dict[str, dict[str, Any]], name: str
) -> None:
    ours = load_tokenizer(folders[name])
    bos = [ours.token_to_id("<s>")]
    for text, ids in zip(corpus(), answers[name]["texts"], strict=True):
        assert bos + plain_ids(ours, text) == ids, text
        assert ours.decode(ids) == text
    assert ours.encode("a")[:1] == bos


@pytest.mark.parametrize("version", VERSIONS)
def test_chats_are_mistrals(
    folders: dict[str, Path],
    answers: dict[str, dict[str, Any]],
    template_process: TemplateProcess,
    version: str,
) -> None:
    folder = folders[version]
    tokenizer = load_tokenizer(folder)
    source = template_source(folder)
    template = ChatTemplate({"default": source}, tokenizer.special_tokens, template_process)
    for (name, chat), ids in zip(CHATS.items(), answers[version]["chats"], strict=True):
        rendered = template.render(chat["messages"], tools=chat.get("tools"))
        assert rendered == tokenizer.decode(ids, skip_special_tokens=False), name
        assert tokenizer.encode_chat(rendered) == ids, name


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_are_read_as_the_version_writes_them(
    folders: dict[str, Path], version: str
) -> None:
    written = answer_format(template_source(folders[version]))
    assert written.tool_calls is (Mistral if version in ("v3", "v7") else MistralArgs)
    assert written.reasons is (version in ("v13", "v15"))


def test_reasoning_is_written_between_its_tokens(template_process: TemplateProcess) -> None:
    source = mistral_template(ChatFormat("v13", thinks=True))
    assert source is not None
    template = ChatTemplate({"default": source}, {"eos_token": "</s>"}, template_process)
    thought = say("assistant", "Six.", reasoning_content="2 * 3")
    assert template.render([HELLO, thought]).endswith("[/INST][THINK]2 * 3[/THINK]Six.</s>")


def test_the_effort_is_one_of_the_models(
    folders: dict[str, Path], template_process: TemplateProcess
) -> None:
    source = template_source(folders["v15"])
    template = ChatTemplate({"default": source}, {"bos_token": "<s>"}, template_process)
    high, low = ({"reasoning_effort": effort} for effort in ("high", "low"))
    assert template.render([HELLO], template_kwargs=high).startswith(
        '<s>[MODEL_SETTINGS]{"reasoning_effort": "high"}[/MODEL_SETTINGS][INST]'
    )
    with pytest.raises(InvalidRequestError, match="one of none, high"):
        template.render([HELLO], template_kwargs=low)


def test_levels_of_effort_that_are_no_words_are_refused(tmp_path: Path) -> None:
    file = TINY | {"model_settings_builder": {"reasoning_effort": EFFORT | {"default": "}}"}}}
    save_tekken(file, tmp_path, "v11")
    with pytest.raises(ModelLoadError, match=r"tekken\.json is damaged"):
        template_source(tmp_path)


def test_a_version_without_a_known_format_has_no_template(tmp_path: Path) -> None:
    save_tekken(TINY, tmp_path, "v99")
    assert template_source(tmp_path) == ""
    assert load_chat_template(tmp_path, load_tokenizer(tmp_path)) is None


def test_a_template_of_the_models_own_comes_first(tmp_path: Path) -> None:
    save_tekken(TINY, tmp_path, "v13")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert template_source(tmp_path) == "{{ messages }}"


TINY: dict[str, Any] = {
    "config": {"pattern": r"\w+|\W", "version": "v3"},
    "vocab": [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for i, token in enumerate(
            [bytes([byte]) for byte in range(256)]
            + [f"{i:04}".encode() for i in range(NUM_RANKS - 256)]
        )
    ],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab": []}, "0 tokens"),
        ({"vocab": [{"token_bytes": "?"}]}, "damaged"),
        ({"vocab": 7}, "damaged"),
        ({"config": {"pattern": "(" * 9}}, "regular expression"),
        ({"config": {"default_vocab_size": -1}}, "damaged"),
        ({"config": {"default_vocab_size": 2**62}}, "damaged"),
        ({"config": {"default_num_special_tokens": 9, "default_vocab_size": 999}}, "more special"),
        ({"special_tokens": [{"rank": 10**9, "token_str": "x"}]}, "damaged"),
        ({"special_tokens": [{"rank": i, "token_str": "x"} for i in range(2)]}, "are one"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    save_tekken(TINY, tmp_path, "v11")
    file = json.loads((tmp_path / "tekken.json").read_bytes())
    for key, value in change.items():
        file[key] = file[key] | value if isinstance(value, dict) else value
    (tmp_path / "tekken.json").write_text(json.dumps(file))
    with pytest.raises(ModelLoadError, match=rf"^tekken\.json .*{said}") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_file_cut_off_is_refused(tmp_path: Path) -> None:
    save_tekken(TINY, tmp_path, "v11")
    data = (tmp_path / "tekken.json").read_bytes()
    (tmp_path / "tekken.json").write_bytes(data[: len(data) // 2])
    for read in (load_tokenizer, template_source):
        with pytest.raises(ModelLoadError, match=r"^tekken\.json is damaged"):
            read(tmp_path)
