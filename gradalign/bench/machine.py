"""The machine a benchmark ran on: its names, its own speed, and the memory that work takes on it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Width of the square matrices whose product gives the machine's own rate."""
PRODUCTS = 3
"""Products timed at a time."""
PERIOD = 0.01
"""Seconds between two looks at the memory."""
STATUS = Path("/proc/self/status")


def machine(device: torch.device) -> dict[str, Any]:
    """What timings depend on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "waiting threads": os.environ.get("OMP_WAIT_POLICY"),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "float32 products": torch.get_float32_matmul_precision(),
        "system": platform.system(),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_width(device: torch.device) -> int:
    """Width of the matrices of `product_seconds`."""
    return PRODUCT.get(device.type, PRODUCT["cpu"])


def product_seconds(device: torch.device, dtype: torch.dtype) -> list[float]:
    """Seconds of each of some products of two square matrices, after one that is not timed."""
    width = product_width(device)
    source = torch.Generator(device).manual_seed(0)  # a card is faster on equal numbers than on real ones
    left, right = (torch.randn(width, width, generator=source, device=device, dtype=dtype) for _ in range(2))
    out = left @ right
    seconds = []
    for _ in range(PRODUCTS):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds


@dataclass
class Peak:
    """The most memory that was held inside `peak`, in bytes above what was held before; None where not known."""

    bytes: int | None = None


@contextlib.contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure the memory of a block: the allocator's on a card, else the process's resident anonymous memory."""
    found = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    _give_back()
    first = _resident()
    if first is None:
        yield found
        return
    most, ended = first, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(PERIOD):
            most = max(most, _resident() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
    found.bytes = max(most, _resident() or 0) - first


def _resident() -> int | None:
    """Resident anonymous memory in bytes; None on systems that do not tell."""
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _give_back() -> None:
    """Have the C library return freed memory, so that it does not hide what is taken next."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
