"""What is installed, and whether llama.cpp runs on this CPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator

from pipeinfer_cpp.health.finding import FAILED, OK, WARNING, Finding
from pipeinfer_cpp.system.machine import Share, cores
from pipeinfer_cpp.system.versions import cpu_name

PACKAGES = (
    "pipeinfer-cpp",
    "llama-cpp-python",
    "pyzmq",
    "numpy",
    "gguf",
    "msgspec",
    "huggingface_hub",
    "typer",
    "rich",
)
# In a process of its own: a library that was built for another CPU dies of an illegal instruction.
_ASK = """
import json, llama_cpp.llama_cpp as lib
lib.llama_log_set(lib.llama_log_callback(lambda *a: None), None)
lib.llama_backend_init()
print(json.dumps([lib.llama_print_system_info().decode(), bool(lib.llama_supports_gpu_offload())]))
"""


def packages() -> Iterator[Finding]:
    yield Finding("Python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding(
            "packages", FAILED, f"not installed: {', '.join(missing)}", "pip install . in the project's folder."
        )
    yield Finding("packages", OK, ", ".join(found))


def llama() -> Iterator[Finding]:
    """Its version is pinned: structs are used by their layout."""
    wanted = next(
        (r.partition("==")[2] for r in importlib.metadata.requires("pipeinfer-cpp") or () if r.startswith("llama-cpp")),
        "",
    )
    version = importlib.metadata.version("llama-cpp-python")
    if wanted and version != wanted:
        advice = f"pip install llama-cpp-python=={wanted}"
        yield Finding("llama.cpp", FAILED, f"llama-cpp-python {version}, but {wanted} is needed", advice)
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=30)
    if done.returncode < 0:
        advice = "It was built for another CPU: pip install --force-reinstall --no-binary :all: llama-cpp-python here."
        yield Finding("llama.cpp", FAILED, f"the library dies here (signal {-done.returncode})", advice)
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield Finding("llama.cpp", FAILED, f"the library does not load: {said}", "pip install --force-reinstall .")
        return
    info, gpu = json.loads(done.stdout)
    features = [
        part.split("=")[0].strip() for part in info.replace(":", "|").split("|") if part.strip().endswith("= 1")
    ]
    yield Finding("llama.cpp", OK, f"llama-cpp-python {version}" + (", with GPU offload" if gpu else ", CPU only"))
    yield Finding("CPU features", OK, " ".join(features) or info.strip())


def machine() -> Iterator[Finding]:
    n = cores()
    yield Finding("CPU", OK, cpu_name())
    text = f"{n} usable core{'s' if n != 1 else ''}: 2 stages and a draft get {Share(n, 3).threads} each by default"
    if n < 4:
        advice = "Expect no speed-up on this machine alone; several machines bring it."
        yield Finding("threads", WARNING, text, advice)
    else:
        yield Finding("threads", OK, text)
    free = _free_memory()
    if free is not None:
        yield Finding(
            "memory", OK if free > 1 else WARNING, f"{free:.1f} GB free", "" if free > 1 else "Close programs."
        )


def _free_memory() -> float | None:
    """Gigabytes; None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) / 1024**2
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 1024**3
    except (ValueError, OSError):
        return None
