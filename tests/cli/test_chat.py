from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from axion.cli.main import main

from .conftest import Server, WordsBackend, chunk, wait_for_output


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["chat", *args])
    return int(caught.value.code or 0)


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException) -> None:
    """Play a person at a terminal, who types these lines and presses Ctrl-C or Ctrl-D."""
    script = iter(lines)

    def read(prompt: str) -> str:
        line = next(script, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)


def said(backend: WordsBackend, turn: int) -> list[tuple[str, str]]:
    """The messages that the model saw in a turn."""
    return [(message.role, str(message.content)) for message in backend.requests[turn].messages]


def test_piped_lines_are_turns_of_one_conversation(
    backend: WordsBackend,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("first one\n\nsecond\n"))
    assert run(model, "--system", "Be brief.", "--seed", "1") == 0
    assert capfd.readouterr() == ("first one\nsecond\n", "")
    assert said(backend, 1) == [
        ("system", "Be brief."),
        ("user", "first one"),
        ("assistant", "first one"),
        ("user", "second"),
    ]
    assert backend.requests[0].seed == 1
    assert backend.stopped


def test_piped_exit_leaves_and_errors_fail(
    backend: WordsBackend,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n/exit\ntwo\n"))
    assert run(model) == 0
    assert capfd.readouterr().out == "one\n"
    backend.max_words = 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    assert run(model) == 1
    assert capfd.readouterr().err == "The prompt is too long.\n"


def test_reset_forgets_all_but_the_system_prompt(
    backend: WordsBackend, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_lines(monkeypatch, "one", "/reset", "two")
    assert run(model, "--system", "S") == 0
    assert said(backend, 1) == [("system", "S"), ("user", "two")]


def test_commands_are_not_sent_to_the_model(
    backend: WordsBackend,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    type_lines(monkeypatch, "/help", "/rest", "", "/exit", "never said")
    assert run(model) == 0
    out = capfd.readouterr().out
    assert "begin a new conversation" in out
    assert "no command /rest" in out
    assert backend.requests == []


def test_interrupt_stops_the_answer_and_keeps_what_was_said(
    backend: WordsBackend,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def press_ctrl_c() -> None:
        wait_for_output(capfd, "one")
        os.kill(os.getpid(), signal.SIGINT)

    backend.hang = True
    backend.on_chunk = press_ctrl_c
    type_lines(monkeypatch, "one two three", "and")
    assert run(model) == 0
    assert backend.cancelled.is_set()
    assert said(backend, 1) == [
        ("user", "one two three"),
        ("assistant", "one"),
        ("user", "and"),
    ]


def test_one_interrupt_at_the_prompt_asks_and_the_second_leaves(
    backend: WordsBackend,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = [KeyboardInterrupt(), "one", KeyboardInterrupt(), KeyboardInterrupt(), "two"]
    type_lines(monkeypatch, *script)
    assert run(model) == 0
    assert len(backend.requests) == 1
    assert "Ctrl-C again" in capfd.readouterr().out


def test_refused_turn_is_told_and_taken_back(
    backend: WordsBackend,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    backend.max_words = 1
    type_lines(monkeypatch, "one two", "three")
    assert run(model) == 0
    assert capfd.readouterr().err == "The prompt is too long.\n"
    assert said(backend, 1) == [("user", "three")]


def test_control_characters_of_the_model_do_not_reach_the_terminal(
    backend: WordsBackend,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\x1b]0;title\x07red\x9b31m [bold]é[/bold]\n"))
    assert run(model) == 0
    assert capfd.readouterr().out == "]0;titlered31m [bold]é[/bold]\n"


def test_model_without_a_template_cannot_converse(
    backend: WordsBackend, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (Path(model) / "chat_template.jinja").unlink()
    assert run(model) == 1
    assert "no chat template" in capfd.readouterr().err
    assert backend.stopped


class Terminal:
    """A pseudo-terminal with a command in it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.seen:
            ready, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self._fd, 4096).decode()
        self.seen = self.seen.split(text, 1)[1]

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())


@contextmanager
def in_terminal(*args: str) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "axion", *args],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its controlling terminal
        env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
    )
    os.close(inner)
    try:
        yield Terminal(outer), process
    finally:
        process.kill()
        process.wait()
        os.close(outer)


def test_conversation_in_a_real_terminal(server: Server) -> None:
    server.hangs = True
    server.answers = [[chunk("Hel"), chunk("lo the")], []]
    with in_terminal("chat", "--url", server.url) as (terminal, process):
        terminal.wait_for(">>> ")
        terminal.send("hi\n")
        terminal.wait_for("Hello the")
        terminal.send("\x03")
        terminal.wait_for("Ctrl-C again")
        assert server.client_left.wait(10)
        terminal.wait_for(">>> ")
        terminal.send("\x04")
        assert process.wait(10) == 0
