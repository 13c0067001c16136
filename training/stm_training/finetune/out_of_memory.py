"""Telling that memory ran out, and giving back what an aborted step held."""

from __future__ import annotations

import gc

import torch

# How torch says it where it has no class of its own for it: the CPU's allocator, and CUDA's libraries.
_WORDS = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


class OutOfMemoryElsewhereError(RuntimeError):
    """Another process of a distributed training ran out of memory in this step."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was asked for and not there."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, OutOfMemoryElsewhereError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def release(device: torch.device) -> None:
    """Free what nothing refers to any more, the allocator's cache included."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
