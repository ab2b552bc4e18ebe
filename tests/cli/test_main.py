from __future__ import annotations

import runpy
import subprocess
import sys
from importlib.metadata import version

import pytest

import axion.cli.main
from axion.cli.main import COMMANDS, main, paragraphs


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(args)
    return int(caught.value.code or 0)


def test_version_is_the_package_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capfd.readouterr().out == f"axion {version('axion')}\n"


def test_help_names_every_command_without_loading_any() -> None:
    program = (
        "import sys\n"
        "from axion.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('axion.backends', 'torch', 'starlette')\n"
        "print([m for m in sys.modules if m.startswith(heavy)], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    for name in COMMANDS:
        assert name in done.stdout


def test_unknown_command_suggests_the_right_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("doktor") == 2
    assert "doctor" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "args"),
    [
        (["axion"], ["serve"]),
        (["axion", "--server-port", "80"], ["serve", "--server-port", "80"]),
        (["axion", "--help"], ["--help"]),
        (["axion", "chat", "m"], ["chat", "m"]),
    ],
)
def test_module_without_a_command_serves(
    argv: list[str], args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(axion.cli.main, "main", called.append)
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_module("axion", run_name="__main__")
    assert called == [args]


def test_help_breaks_its_lines_where_the_terminal_ends() -> None:
    assert (
        paragraphs("One\n    sentence.\n\n    Another\n    one.") == "One sentence.\n\nAnother one."
    )
