"""What a figure depends on besides data and seed: versions and hardware."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("merger-plugins", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "torch")


def environment(*also: str) -> dict[str, Any]:
    """``versions`` of Python and installed packages, and ``hardware``, without the machine's name.

    Args:
        also: packages that the figures depend on beside those that all do.
    """
    return {
        "versions": {"python": platform.python_version(), **_versions((*_PACKAGES, *also))},
        "hardware": {"cpu": _cpu(), "cores": _cores(), "system": platform.system()},
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
