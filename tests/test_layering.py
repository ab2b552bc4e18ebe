"""The house's rules: imports go one way, without cycles, and torch stays where it belongs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import axion

ROOT = Path(axion.__file__).parent

# Rooms from top to bottom. A module may import from its own room and from rooms below it.
# The API process and the model process are two houses on one ground floor.
API_ROOMS = [
    {"axion.cli", "axion.__main__"},
    {"axion.server"},
    {"axion.conformance", "axion.bench"},
    {"axion.router"},
    {"axion.backends"},
    {
        "axion.engine.client",
        "axion.engine.messages",
        "axion.parity.messages",
        "axion.pooling.messages",
        "axion.text",
    },
    {"axion.hub", "axion.openai", "axion.observability"},
    {"axion.settings"},
    {"axion.types"},
    {"axion.errors", "axion"},
]
MODEL_ROOMS = [
    {"axion.llm", "axion.demo", "axion.parity", "axion.bench"},
    {"axion.engine", "axion.pooling"},
    {"axion.models"},
    {"axion.quantization"},
    {"axion.layers"},
    {
        "axion.engine.child",
        "axion.engine.messages",
        "axion.parity.messages",
        "axion.pooling.messages",
        "axion.text",
    },
    {"axion.hub"},
    {"axion.types"},
    {"axion.errors", "axion"},
]
# May name a room of the other house: the package's lazy public names.
LAZY = {"axion"}

# Only these import torch.
TORCH_ROOMS = {
    "axion.llm",
    "axion.layers",
    "axion.models",
    "axion.quantization",
    "axion.bench.engine",
    "axion.bench.limits",
    "axion.demo.train",
    "axion.engine.assembly",
    "axion.engine.cache_plan",
    "axion.engine.core",
    "axion.engine.cuda_graph",
    "axion.engine.device",
    "axion.engine.draft_model",
    "axion.engine.expected_tensors",
    "axion.engine.gguf",
    "axion.engine.host_memory",
    "axion.engine.kv_cache",
    "axion.engine.state_cache",
    "axion.engine.loader",
    "axion.engine.memory_ahead",
    "axion.engine.batch_invariant",
    "axion.engine.model_runner",
    "axion.engine.pickle_checkpoint",
    "axion.engine.recorded_steps",
    "axion.engine.sampler",
    "axion.engine.process",
    "axion.parity.calls",
    "axion.parity.compare",
    "axion.parity.harness",
    "axion.parity.modules",
    "axion.parity.new_model",
    "axion.parity.reference",
    "axion.parity.tiny",
    "axion.pooling.native",
}
# Only these import numba, in the process that compiles: it takes a model's process 130 MB.
NUMBA_ROOMS = {"axion.layers.cpu_kernels.compiled", "axion.layers.cpu_kernels.compiler"}
API_PROCESS = ["axion.cli.main", "axion.cli.serve", "axion.server.app",
               "axion.backends.native.backend", "axion.backends.worker", "axion.backends.spawned",
               "axion.router.registry", "axion.router.plan", "axion.backends.engines",
               "axion.backends.vllm", "axion.cli.explain"]  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports_of(name: str, *, at_module_level: bool = False) -> set[str]:
    """Modules that `name` imports; those for the type checker alone do not count."""
    tree = ast.parse(MODULES[name].read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if at_module_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} uses a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def in_room(name: str, room: str) -> bool:
    return name == room or (room != "axion" and name.startswith(f"{room}."))


def level(name: str, rooms: list[set[str]]) -> int | None:
    """Index of the room that names the module most precisely."""
    matches = [
        (len(room), index)
        for index, level_rooms in enumerate(rooms)
        for room in level_rooms
        if in_room(name, room)
    ]
    return max(matches)[1] if matches else None


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_has_a_room(name: str):
    assert level(name, API_ROOMS) is not None or level(name, MODEL_ROOMS) is not None


@pytest.mark.parametrize("name", sorted(set(MODULES) - LAZY))
def test_imports_go_down_only(name: str):
    for imported in imports_of(name):
        if not in_room(imported, "axion") and not imported.startswith("axion."):
            continue
        allowed = any(
            (own := level(name, rooms)) is not None
            and (other := level(imported, rooms)) is not None
            and own <= other
            for rooms in (API_ROOMS, MODEL_ROOMS)
        )
        assert allowed, f"{name} imports {imported}, which is above it or in the other house"


def test_imports_have_no_cycle():
    graph = {
        name: {i for i in imports_of(name, at_module_level=True) if i in MODULES and i != name}
        for name in MODULES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_torch_and_numba_stay_where_they_belong(name: str):
    imported = imports_of(name)
    for library, rooms in (("torch", TORCH_ROOMS), ("numba", NUMBA_ROOMS)):
        imports_it = any(in_room(i, library) for i in imported)
        assert not imports_it or any(in_room(name, room) for room in rooms)
    imports_kernels = any(in_room(i, room) for i in imported for room in NUMBA_ROOMS)
    assert not imports_kernels or any(in_room(name, room) for room in NUMBA_ROOMS)


def test_one_architecture_imports_another_only_as_its_child():
    names = {name for name in MODULES if name.startswith("axion.models.")}
    shared = {
        *("axion.models.base", "axion.models.encoder", "axion.models.config"),
        *("axion.models.moe", "axion.models.mla", "axion.models.registry", "axion.models"),
        *("axion.models.hybrid", "axion.models.gated_delta_net", "axion.models.indexed"),
        *("axion.models.fallback_calls", "axion.models.fallback_config"),
        *("axion.models.fallback_head", "axion.models.fallback_layers"),
        *("axion.models.fallback_weights", "axion.models.remote_code"),
        *("axion.models.mamba_mixer", "axion.models.mamba2_mixer"),
        *("axion.models.seeing", "axion.models.transformers_fallback"),
        *("axion.models.kimi_delta_attention", "axion.models.hyper_connections"),
    }
    for name in names - shared:
        for other in imports_of(name) & (names - shared):
            source = MODULES[name].read_text()
            classes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)]
            bases = {ast.unparse(base) for node in classes for base in node.bases}
            family = other.rsplit(".", 1)[1].replace("_", "")
            assert any(base.lower().replace("_", "").startswith(family) for base in bases), (
                f"{name} borrows from {other}"
            )


def test_the_api_process_never_imports_torch_or_onnxruntime():
    code = (
        "import importlib, sys\n"
        f"for name in {API_PROCESS!r}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'onnxruntime') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
