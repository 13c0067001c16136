"""How much memory a training may still take: the device's, or this process's share of the machine's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

# Where a system tells nothing at all: small enough for any machine that trains.
_UNKNOWN = 2 * 1024**3


def free_memory(device: torch.device, *, root: Path = Path("/")) -> int:
    """Bytes that can still be allocated on a device.

    Args:
        device: ``cuda``: what the driver and torch's cache have left; ``mps``: what Metal recommends.
            ``cpu``: on Linux the least of what the kernel calls available and what the control groups of
            this process leave; on Windows the available physical memory; elsewhere half of the physical one.
        root: Where ``/proc`` and ``/sys`` lie.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    if sys.platform.startswith("linux"):
        return max(0, min([*_available(root), *_left_by_groups(root)], default=_UNKNOWN))
    if sys.platform == "win32":
        return _windows()
    return _physical() // 2


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            yield int(value.split()[0]) * 1024


def _left_by_groups(root: Path) -> Iterator[int]:
    """Room under the limit of each control group that this process is in, nested ones included."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top = root / "sys/fs/cgroup"
            names = ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be the host's, which is not there; the limit is then at the top.
        inside = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(inside) + 1):
            yield from _room(top.joinpath(*inside[:depth]), *names)


def _room(folder: Path, limit_name: str, used_name: str, cache_name: str) -> Iterator[int]:
    limit, used = _number(folder / limit_name), _number(folder / used_name)
    if limit is None or used is None:
        return
    cached = 0  # file pages that the kernel drops before it kills anything
    for line in _lines(folder / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == cache_name:
            cached = int(value)
    yield limit - used + cached


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None  # "max": no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2 * _UNKNOWN


def _windows() -> int:
    import ctypes

    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total_physical", ctypes.c_ulonglong),
            ("available_physical", ctypes.c_ulonglong),
            ("total_page_file", ctypes.c_ulonglong),
            ("available_page_file", ctypes.c_ulonglong),
            ("total_virtual", ctypes.c_ulonglong),
            ("available_virtual", ctypes.c_ulonglong),
            ("available_extended_virtual", ctypes.c_ulonglong),
        )

    status = Status(length=ctypes.sizeof(Status))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - the name is there on Windows alone
    return int(status.available_physical) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else _UNKNOWN
