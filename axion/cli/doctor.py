"""`axion doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from axion.backends.engines import spawned_engines
from axion.backends.installed import find_command
from axion.backends.spawned import SpawnedBackend
from axion.settings import SettingsError, config_file, load_settings

REQUIRED_PACKAGES = (
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "huggingface-hub",
    "starlette",
    "uvicorn",
    "pydantic",
    "pyzmq",
)
# What decides how fast the native engine computes on CPU.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
# Some engines import torch only to tell their version.
VERSION_TIMEOUT_S = 60.0

# Another process, because torch takes seconds to load and a broken driver can end it.
_TORCH_FACTS = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "cuda": torch.version.cuda or torch.version.hip,
    "num_threads": torch.get_num_threads(),
    "gpus": [
        {"name": p.name, "memory_bytes": p.total_memory, "capability": f"{p.major}.{p.minor}"}
        for i in range(torch.cuda.device_count() if cuda else 0)
        for p in [torch.cuda.get_device_properties(i)]
    ],
}))
"""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show what this machine has: devices, memory, engines, cache.

    The exit status is 1 when something is missing that Axion cannot run without.
    """
    report = examine()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    if report["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """All findings; `problems` holds a sentence for each thing that Axion cannot run without."""
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(_torch)
        engines = pool.map(_engine, spawned_engines())
        report: dict[str, Any] = {
            "axion": _version("axion"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in REQUIRED_PACKAGES},
            "torch": torch.result(),
            "cpu": _cpu(),
            "memory": _memory(),
            "gpus": _gpus(torch.result()),
            "engines": list(engines),
            "cache": _cache(),
            "settings": _settings(),
        }
    report["problems"] = _problems(report)
    return report


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    out = _run([sys.executable, "-c", _TORCH_FACTS])
    try:
        facts: dict[str, Any] = json.loads(out.stdout)
    except ValueError:
        last = (out.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": last, "gpus": []}
    return facts


def _cpu() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            match key.strip():
                case "model name":
                    model = value.strip()
                case "flags" | "Features":
                    flags = set(value.split())
                    break
    except OSError:
        pass  # not Linux
    return {
        "model": model,
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "usable_threads": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
    }


def _memory() -> dict[str, int]:
    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _gpus(torch: dict[str, Any]) -> list[dict[str, Any]]:
    """From torch, or where it sees none from the driver, which knows more than torch can use."""
    if torch["gpus"]:
        return [gpu | {"usable": True} for gpu in torch["gpus"]]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    gpus = []
    for line in _run(["nvidia-smi", *query]).stdout.splitlines():
        name, comma, mib = line.rpartition(", ")
        if comma and mib.strip().isdigit():
            gpus.append({"name": name, "memory_bytes": int(mib) * 2**20, "usable": False})
    return gpus


def _engine(engine: type[SpawnedBackend]) -> dict[str, Any]:
    variable = engine.command_variable
    command = find_command(variable, engine.default_command)
    path = command[0] if command is not None else None
    finding: dict[str, Any] = {"name": engine.title, "command": variable, "path": path}
    finding["version"] = None
    if command is not None:
        out = _run([*command, "--version"])
        if out.returncode == 0:
            finding["version"] = _version_in(out.stdout) or _version_in(out.stderr)
    return finding


def _version_in(text: str) -> str | None:
    """The last line that tells a version; warnings and build details stand around it."""
    for pattern in (r"\bversion\W+\d", r"\d+\.\d+"):
        lines = [line.strip() for line in text.splitlines() if re.search(pattern, line)]
        if lines:
            return lines[-1][:80]
    return None


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The outcome of a command; one that cannot run, or takes too long, has failed."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=VERSION_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, -1, "", f"{type(error).__name__}")


def _cache() -> dict[str, Any]:
    from huggingface_hub import constants, get_token

    folder = existing = Path(constants.HF_HUB_CACHE)
    while not existing.exists():
        existing = existing.parent
    blobs = [blob.stat() for blob in folder.glob("*/blobs/*")]
    return {
        "folder": str(folder),
        "size_bytes": sum(blob.st_size for blob in blobs),
        "num_models": len(list(folder.glob("models--*"))),
        "free_bytes": shutil.disk_usage(existing).free,
        "writable": os.access(existing, os.W_OK),
        "token": get_token() is not None,
        "offline": constants.HF_HUB_OFFLINE,
    }


def _settings() -> dict[str, Any]:
    try:
        settings = load_settings()
        file = config_file()
    except SettingsError as error:
        return {"error": error.message}
    return {
        "file": str(file.resolve()) if file else None,
        "model_name": settings.model_name,
        "port": settings.server_port,
        "port_is_free": _port_is_free(settings.server_host, settings.server_port),
    }


def _port_is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        # As the server does it: connections that are only closing do not hold the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def _problems(report: dict[str, Any]) -> list[str]:
    problems = [
        f"The package {name} is not installed. Install Axion again with pip."
        for name, installed in report["packages"].items()
        if installed is None
    ]
    if error := report["torch"].get("error"):
        problems.append(f"torch cannot be loaded: {error}")
    if error := report["settings"].get("error"):
        problems.append(error)
    return problems


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, describe in _ROWS.items():
        for index, line in enumerate(describe(report)):
            table.add_row("" if index else title, Text(line))
    console = Console()
    console.print(table)
    for problem in report["problems"]:
        console.print(Text(f"✗ {problem}", style="red"))
    if not report["problems"]:
        console.print(Text("✓ Axion can run here.", style="green"))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _describe_cpu(report: dict[str, Any]) -> list[str]:
    cpu = report["cpu"]
    return [
        cpu["model"],
        f"{cpu['cores']} cores, {cpu['threads']} threads, {cpu['usable_threads']} usable here",
        " ".join(cpu["flags"]) or "none of " + " ".join(CPU_FLAGS),
    ]


def _describe_gpus(report: dict[str, Any]) -> list[str]:
    return [
        f"{gpu['name']}, {_gib(gpu['memory_bytes'])}"
        + ("" if gpu["usable"] else "; this torch cannot use it")
        for gpu in report["gpus"]
    ] or ["none"]


def _describe_engines(report: dict[str, Any]) -> list[str]:
    return [
        f"{engine['name']}: "
        + (
            f"{engine['version'] or 'version unknown'} ({engine['path']})"
            if engine["path"]
            else f"not found; {engine['command']} may name it"
        )
        for engine in report["engines"]
    ]


def _describe_cache(report: dict[str, Any]) -> list[str]:
    cache = report["cache"]
    return [
        cache["folder"] + ("" if cache["writable"] else " (cannot be written)"),
        f"{cache['num_models']} models, {_gib(cache['size_bytes'])}; "
        f"{_gib(cache['free_bytes'])} free on the disk",
        f"HF_TOKEN {'present' if cache['token'] else 'not set'}"
        + ("; offline" if cache["offline"] else ""),
    ]


def _describe_settings(report: dict[str, Any]) -> list[str]:
    settings = report["settings"]
    if "error" in settings:
        return ["not usable"]
    return [
        settings["file"] or "no file; environment and defaults",
        f"model {settings['model_name']}",
        f"port {settings['port']} is {'free' if settings['port_is_free'] else 'taken'}",
    ]


_ROWS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "Axion": lambda r: [f"{r['axion']}, Python {r['python']}, {r['platform']}"],
    "Packages": lambda r: [
        ", ".join(f"{name} {found or 'MISSING'}" for name, found in r["packages"].items())
    ],
    "CPU": _describe_cpu,
    "Memory": lambda r: [
        f"{_gib(r['memory']['total_bytes'])}, {_gib(r['memory']['available_bytes'])} available"
    ],
    "GPUs": _describe_gpus,
    "Engines": _describe_engines,
    "Model cache": _describe_cache,
    "Settings": _describe_settings,
}
