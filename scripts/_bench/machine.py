"""What was measured on: processor and its instructions, memory, GPU, versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from _bench.harness import cores
from ldm.training.run import current_commit

TELLING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "avx512_fp16",
    "asimd",
    "bf16",
    "i8mm",
)
PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch", "openvino")


def describe() -> dict[str, str]:
    import torch

    about = {"processor": f"{processor()}, {cores()} cores in use", "instructions": " ".join(instructions())}
    about["memory"] = f"{total_memory() / 2**30:.0f} GB"
    if torch.cuda.is_available():
        about["gpu"] = (
            f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GB"
        )
    about["python"] = platform.python_version()
    about["versions"] = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    about["commit"] = current_commit()
    return about


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def processor() -> str:
    return _field("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Of those that decide how fast matrices are multiplied, the ones that are there."""
    flags = (_field("flags") or _field("Features") or "").split()
    return [name for name in TELLING if name in flags]


def _field(name: str) -> str | None:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def total_memory() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
