"""Opening an index folder for searching, again in a copy or in another process if need be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stm_retriever import ConfigError, Retriever
from stm_retriever.foreign import AnyEmbedder

Device = Literal["cpu", "cuda", "auto"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides which index is open, and how."""

    index: str
    variant: str | None = None
    device: Device = "cpu"
    threads: int | None = None


class OpenIndex:
    """An open index that knows how it was opened; pickles and deep-copies by opening it again."""

    def __init__(self, settings: Settings, retriever: Retriever, embedder: AnyEmbedder | None) -> None:
        self.settings = settings
        self.retriever = retriever
        self.embedder = embedder

    @classmethod
    def open(cls, settings: Settings, embedder: AnyEmbedder | None = None) -> OpenIndex:
        """Open the index, read only, with the given model or with the one that it was made with.

        Raises:
            ConfigError: If a loaded model and options for loading one are given.
            StmError: What ``Retriever.open`` and ``Embedder.load`` raise.
        """
        if embedder is None:
            opened = Retriever.open(
                settings.index,
                variant=settings.variant,
                device=settings.device,
                threads=settings.threads,
                read_only=True,
            )
            return cls(settings, opened, None)
        if settings != Settings(settings.index):
            raise ConfigError(
                f"STMRetriever got an embedder= that is loaded already ({embedder.name!r}) and also "
                "variant=, device= or threads=, which could no longer take effect. Pass the one or the other."
            )
        return cls(settings, Retriever.open(settings.index, embedder=embedder, read_only=True), embedder)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenIndex.open, (self.settings, self.embedder)
