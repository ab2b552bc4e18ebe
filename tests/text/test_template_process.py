from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from axion.errors import InvalidRequestError, ModelLoadError
from axion.text.template_process import TemplateProcess

MESSAGES = [{"role": "user", "content": "hi"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

TOO_LONG = {
    "loop": ENDLESS,
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"
    ),
    "power": "{{ n ** n ** n }}",
    # One comparison in C, 2**60 steps, which holds the interpreter of its process.
    "comparison": (
        "{% set ns = namespace(a=(), b=()) %}{% for i in range(60) %}"
        "{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}{{ ns.a == ns.b }}"
    ),
}
TOO_LARGE = {
    "product": "{{ 'a' * n }}",
    "filter": "{{ 'a' | center(n) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "method": "{{ 'a'.ljust(n) }}",
}


@pytest.fixture
def process(template_process: TemplateProcess) -> TemplateProcess:
    return template_process


@pytest.fixture(scope="module")
def impatient() -> Iterator[TemplateProcess]:
    process = TemplateProcess(timeout_s=0.5)
    yield process
    process.close()


def render(process: TemplateProcess, template: str) -> str:
    return process.render(template, {"messages": MESSAGES, "n": 10**10})


@pytest.mark.parametrize("attack", TOO_LONG)
def test_a_template_that_takes_too_long_is_stopped(impatient: TemplateProcess, attack: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"longer than 0\.5 s"):
        render(impatient, TOO_LONG[attack])
    assert render(impatient, "still here") == "still here"


@pytest.mark.parametrize("attack", TOO_LARGE)
def test_a_template_that_takes_too_much_memory_is_stopped(
    process: TemplateProcess, attack: str
) -> None:
    with pytest.raises(InvalidRequestError, match="MiB of memory"):
        render(process, TOO_LARGE[attack])


def test_a_template_that_writes_too_much_is_stopped(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axion.text.bounded_process.MAX_OUTPUT_BYTES", 2**20)
    with pytest.raises(InvalidRequestError, match="output is over 1 MiB"):
        render(process, "{% for i in range(2000) %}{{ 'a' * 1000 }}{% endfor %}")
    assert render(process, "still here") == "still here"


def test_a_recursion_without_end_is_an_error(process: TemplateProcess) -> None:
    with pytest.raises(InvalidRequestError, match="recursion"):
        render(process, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append.__self__.x }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
    ],
)
def test_what_the_sandbox_forbids_is_refused(process: TemplateProcess, template: str) -> None:
    with pytest.raises(InvalidRequestError, match="refused"):
        render(process, template)


def test_files_are_out_of_reach(process: TemplateProcess) -> None:
    for template in ("{% include '/etc/passwd' %}", "{{ open('/etc/passwd') }}"):
        with pytest.raises(InvalidRequestError) as caught:
            render(process, template)
        assert "root:" not in caught.value.message


def test_the_limits_hold_while_compiling(process: TemplateProcess) -> None:
    """Jinja computes constants when it compiles, before anything is rendered."""
    with pytest.raises(InvalidRequestError, match="stopped"):
        render(process, "{{ 'a' * 10 ** 10 }}")


def test_a_syntax_error_is_the_models_fault(process: TemplateProcess) -> None:
    with pytest.raises(ModelLoadError, match="syntax error in line 2"):
        process.describe("{{ messages }}\n{% for %}")


@pytest.mark.parametrize(
    ("template", "reads_parts", "reads_strings"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False, False),
        ("{% for m in messages %}{{ m.content.split('x') }}{% endfor %}", False, False),
        ("{% for l in m['content'].split('x') %}{{ l }}{% endfor %}", False, False),
        ("{% for p in m.content %}{{ p }}{% endfor %}", True, False),
        ("{% for p in m['content'] | selectattr('text') %}{{ p }}{% endfor %}", True, False),
        ("{% set c = m['content'] %}{% for p in c %}{{ p }}{% endfor %}", True, False),
        ("{% macro f(content) %}{% for p in content %}{% endfor %}{% endmacro %}", True, False),
        (
            "{% if m.content is string %}{% else %}{% for p in m.content %}{% endfor %}{% endif %}",
            True,
            True,
        ),
    ],
)
def test_what_form_of_content_a_template_reads(
    process: TemplateProcess, template: str, reads_parts: bool, reads_strings: bool
) -> None:
    description = process.describe(template)
    assert description["reads_parts"] == reads_parts
    assert description["reads_strings"] == reads_strings


def test_variables_are_those_that_the_sandbox_does_not_set(process: TemplateProcess) -> None:
    template = "{% if thinking %}{{ raise_exception(strftime_now(x)) }}{% endif %}"
    assert process.describe(template)["variables"] == ["thinking", "x"]


def test_text_comes_back_as_it_went(process: TemplateProcess) -> None:
    for text in ("é😀\x00\n", "\ud800", "<b>&amp;'\"", "x" * 3_000_000):
        messages = [{"role": "user", "content": text}]
        template = "{{ messages[0].content }}"
        assert process.render(template, {"messages": messages}) == text


def test_what_is_nested_too_deeply_is_refused(process: TemplateProcess) -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidRequestError, match="nested"):
        process.render("x", {"messages": [{"role": "user", "content": nested}]})


def test_threads_share_it_and_get_their_own_answers(process: TemplateProcess) -> None:
    with ThreadPoolExecutor(8) as threads:
        texts = [f"answer {i}" for i in range(200)]
        assert list(threads.map(lambda text: render(process, text), texts)) == texts


def child_of(process: TemplateProcess) -> psutil.Process:
    render(process, "x")
    assert process._process is not None
    return psutil.Process(process._process.pid)


def test_it_comes_back_after_it_was_killed(process: TemplateProcess) -> None:
    child = child_of(process)
    child.kill()
    psutil.wait_procs([child], timeout=20)
    assert child_of(process) != child


def test_it_ends_when_it_is_closed() -> None:
    process = TemplateProcess()
    child = child_of(process)
    process.close()
    assert not child.is_running()


def test_it_ends_when_it_is_forgotten() -> None:
    process = TemplateProcess()
    child = child_of(process)
    del process
    assert not child.is_running()


def test_it_ends_with_a_server_that_is_killed() -> None:
    script = f"""
import threading
from axion.text.template_process import TemplateProcess
process = TemplateProcess(timeout_s=1)
process.render("x", {{"messages": [{{}}]}})
threading.Thread(target=process.render, args=({ENDLESS!r}, {{"messages": [{{}}]}})).start()
print(process._process.pid, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        child = psutil.Process(int(server.stdout.readline()))
        server.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive


def test_the_sandbox_imports_what_renders_and_no_more() -> None:
    script = (
        "import sys; from axion.text import template_worker; template_worker._begin()\n"
        "print({'torch', 'httpx', 'jinja2'} & sys.modules.keys())"
    )
    imported = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert imported == "{'jinja2'}\n"
