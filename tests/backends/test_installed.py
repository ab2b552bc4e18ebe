"""Engines are found where their executable is, and asked in a process of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from axion.backends.installed import AskError, ask, ask_once, find_command, interpreter

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Makes a program that is found on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AXION_X_COMMAND", raising=False)

    def write(name: str, text: str) -> Path:
        program = folder / name
        program.write_text(text)
        program.chmod(0o755)
        return program

    return write


def test_a_command_is_found_on_the_path_or_where_its_variable_says(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert find_command("AXION_X_COMMAND", "engine") is None
    program = write("engine", "#!/bin/sh\n")
    assert find_command("AXION_X_COMMAND", "engine") == [str(program)]
    other = write("other", "#!/bin/sh\n")
    monkeypatch.setenv("AXION_X_COMMAND", f"{other} --flag 'two words'")
    assert find_command("AXION_X_COMMAND", "engine") == [str(other), "--flag", "two words"]
    for wrong in ("/nowhere/engine", "'open", " "):
        monkeypatch.setenv("AXION_X_COMMAND", wrong)
        assert find_command("AXION_X_COMMAND", "nowhere") is None


def test_the_python_of_a_program_is_what_its_first_line_names(write: Write):
    assert interpreter(str(write("a", f"#!{sys.executable} -s\n"))) == sys.executable
    write("python3.99", "#!/bin/sh\n")
    found = interpreter(str(write("b", "#!/usr/bin/env python3.99\n")))
    assert found is not None
    assert found.endswith("python3.99")
    assert interpreter(str(write("c", "#!/bin/sh\n"))) is None
    assert interpreter(str(write("d", "\x7fELF"))) is None
    assert interpreter(str(write("e", "#!/gone/python\n"))) is None
    assert interpreter("/nowhere") is None


async def test_a_program_is_asked(write: Write):
    program = write("engine", "#!/bin/sh\necho $1 $X\necho warning >&2\n")
    assert await ask([str(program), "hello"], timeout_s=10, env={"X": "you"}) == b"hello you\n"


async def test_a_program_of_another_python_does_not_look_for_modules_where_axion_does(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    show = "import os; print(os.environ.get('PYTHONPATH'), 'PYTHONHOME' in os.environ)"
    write("python3.99", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    foreign = write("foreign", f"#!/usr/bin/env python3.99\n{show}\n")
    wrapper = write("wrapper", f"#!/bin/sh\nexec {foreign}\n")
    for program in (foreign, wrapper):
        assert await ask([str(program)], timeout_s=10) == b" False\n"
    own = write("own", f"#!{sys.executable}\n{show}\n")
    assert await ask([str(own)], timeout_s=10) == f"{tmp_path} False\n".encode()
    chosen = await ask([str(foreign)], timeout_s=10, env={"PYTHONPATH": "/mine"})
    assert chosen == b"/mine False\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#!/bin/sh\nexit 3\n", "engine ended with status 3"),
        ("#!/bin/sh\nsleep 60 & sleep 60\n", "engine did not answer within"),
        ("#!/nowhere/sh\n", "engine cannot be run"),
    ],
)
async def test_a_program_that_does_not_answer_is_told_without_its_path(
    write: Write, text: str, says: str
):
    program = write("engine", text)
    with pytest.raises(AskError, match=says) as error:
        await ask([str(program)], timeout_s=0.3)
    assert str(program.parent) not in str(error.value)


async def test_an_answer_is_kept_until_the_program_changes(write: Write, tmp_path: Path):
    count = tmp_path / "count"
    program = write("engine", f"#!/bin/sh\necho x >> {count}\nwc -l < {count}\n")

    async def answer(*command: str) -> bytes:
        words = [str(program), *command]
        return (await ask_once("x", words, of=str(program), timeout_s=10)).strip()

    assert await answer() == b"1"
    assert await answer() == b"1"
    assert await answer("else") == b"2"
    os.utime(program, (1, 1))
    assert await answer() == b"3"


async def test_what_failed_is_not_kept(write: Write, tmp_path: Path):
    program = write("engine", "#!/bin/sh\nexit 1\n")
    for _ in range(2):
        with pytest.raises(AskError):
            await ask_once("x", [str(program)], of=str(program), timeout_s=10)
    assert not list(tmp_path.glob("cache/**/*.*"))
