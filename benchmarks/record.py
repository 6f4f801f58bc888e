"""The head of each record: the command, the commit, the machine and the versions that gave its figures."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fxhash


def head(device: str = "cpu", hidden: Iterable[Path | None] = ()) -> dict[str, object]:
    """The head of a record, to be written before its results.

    Args:
        device: where the models are: `"cpu"` or `"cuda"`.
        hidden: paths that the command names and that say nothing to others; the command in the record has `DIR`.
    """
    script, *arguments = sys.argv
    command = shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments])
    for path in hidden:
        command = command if path is None else command.replace(str(path), "DIR")
    return {
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "fxhash": fxhash.__version__,
        "torch": torch.__version__,
        **_version_if_installed("torchvision"),
        "python": platform.python_version(),
    }


def _version_if_installed(package: str) -> dict[str, str]:
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}


def commit() -> str:
    """The commit that is checked out; an empty string outside of a repository."""
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def machine() -> str:
    """Architecture, number of cores and processor, such as `"x86_64, 2 cores, AMD EPYC"`."""
    return f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
