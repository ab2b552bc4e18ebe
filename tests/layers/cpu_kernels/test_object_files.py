"""Kernels are compiled once for each machine, and models are served where that is impossible."""

from __future__ import annotations

import logging
import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import object_files
from axion.layers.cpu_kernels.object_files import Wanted

MAKERS = "tests.layers.cpu_kernels.makers"
WANTED = Wanted(f"{MAKERS}:fill", (3,), 2, 1)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch):
    """What has been compiled, without compiling it."""
    names: list[str] = []
    monkeypatch.setattr(
        object_files.compiler,
        "compile",
        lambda wanted: names.append(wanted.name) or wanted.name.encode() * 10_000,
    )
    object_files._folder.cache_clear()
    yield names
    object_files._folder.cache_clear()


def test_what_one_process_compiled_others_read(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = object_files.get(WANTED)
    assert object_files.get(WANTED) == first
    assert object_files.get(WANTED._replace(given=(4,))) == first
    assert len(compiled) == 2
    assert len([*tmp_path.glob("axion/kernels/*/*")]) == 2


def test_processes_that_write_at_once_do_not_disturb_each_other(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "kernels" / "one.o"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: object_files._write(file, bytes([i]) * 100_000), range(40)))
    assert len(set(object_files._read(file) or b"")) == 1
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize("size", [0, 20, 50_000])
def test_a_file_that_was_cut_is_compiled_again(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = object_files.get(WANTED)
    [file] = tmp_path.glob("axion/kernels/*/*")
    os.truncate(file, size)
    assert object_files.get(WANTED) == whole
    assert object_files.get(WANTED) == whole
    assert len(compiled) == 2


@pytest.mark.parametrize("by", ["a foreign owner", "everybody's right to write"])
def test_machine_code_that_others_may_have_written_is_not_run(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    object_files.get(WANTED)
    [file] = tmp_path.glob("axion/kernels/*/*")
    if by == "a foreign owner":
        uid = file.stat().st_uid
        if uid == 0:  # who may give files away, and whose files all others trust
            uid = 12345
            os.chown(file, uid, -1)
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    else:
        file.chmod(0o666)
    object_files.get(WANTED)
    assert len(compiled) == 2


def test_a_cache_that_cannot_be_written_is_done_without_and_named_once(
    compiled: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert object_files.get(WANTED)
        assert object_files.get(WANTED)
    assert len(compiled) == 2
    [record] = caplog.records
    assert "XDG_CACHE_HOME" in record.getMessage()


def test_a_user_without_a_home_has_kernels(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert object_files.get(WANTED)
    assert len(compiled) == 1


def test_what_cannot_be_compiled_says_why_and_the_next_is_compiled() -> None:
    with pytest.raises(RuntimeError, match="nothing_like_this"):
        object_files.compiler.compile(Wanted(f"{MAKERS}:wrong", (), 1, 0))
    assert object_files.compiler.compile(WANTED).startswith(b"\x7fELF")


def test_threads_that_want_a_kernel_at_once_compile_it_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    object_files._folder.cache_clear()
    object_files.compiler.end()
    together = Barrier(2)

    def get() -> bytes:
        together.wait()
        return object_files.get(WANTED)

    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(get), pool.submit(get)
    object_files._folder.cache_clear()
    assert caplog.messages == ["compiling kernels for this processor"]
    assert one.result() == other.result()


def test_a_compiler_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/true")
    compiler = object_files._Compiler()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        compiler.compile(WANTED)
    compiler.end()


def fail(*_: object) -> None:
    raise RuntimeError("no such processor")


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch):
    """Nobody has tried out whether kernels work."""
    monkeypatch.setattr(cpu_kernels, "_given_up", False)
    cpu_kernels._have_worked.cache_clear()
    yield
    cpu_kernels._have_worked.cache_clear()


def test_an_answer_that_nobody_waited_for_is_not_that_to_the_next_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    compiler = object_files._Compiler()
    with monkeypatch.context() as patch:
        process = compiler._start()
        patch.setattr(process.stdout, "readline", interrupted)
        patch.setattr(compiler, "_process", process)
        with pytest.raises(KeyboardInterrupt):
            compiler.compile(WANTED)
        assert compiler._process is None
    assert process.poll() is not None


@pytest.mark.usefixtures("untried")
def test_torch_computes_where_kernels_do_not_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("axion.layers.cpu_kernels.linear.linear", fail)
    with caplog.at_level(logging.WARNING):
        x = torch.ones(1, 16, dtype=torch.bfloat16)
        assert not cpu_kernels.run_on(x)
        assert not cpu_kernels.run_on(x)
    assert len(caplog.records) == 1
    assert "no such processor" in caplog.text


@pytest.mark.usefixtures("untried")
def test_torch_computes_where_a_kernel_of_the_model_does_not_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cpu = torch.device("cpu")
    cpu_kernels.prepare(torch.float32, cpu, fail)  # not called
    assert cpu_kernels.work()
    cpu_kernels.prepare(torch.bfloat16, cpu, fail)
    assert not cpu_kernels.work()
    assert "no such processor" in caplog.text
