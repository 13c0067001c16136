"""Token ids to unit vectors: batches by a token budget, side by side on a CPU, halved if memory ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from stm_retriever.encoding.engines import Engine, Vectors, is_out_of_memory, too_large
from stm_retriever.encoding.precision import unit
from stm_retriever.errors import ArtifactMismatchError, ModelFolderError
from stm_retriever.tokenization import Ids, TextTokenizer, token_budget_batches

logger = logging.getLogger(__name__)

# Dynamic int8 scales activations over the whole batch, so a text's vector would depend on its batch mates.
# Variants that are not known to be free of that run one text at a time.
BATCH_INVARIANT = frozenset({"fp32", "fp16", "bf16", "w8"})
# Measured on two cores with all-MiniLM-L6-v2: long texts are as fast alone, short ones gain a tenth from
# company (256 tokens in all: 124 per second, alone 112), and more than 1024 tokens fall out of the cache. One
# run at a time on all threads wants a little more work, a GPU much more.
_SIDE_BY_SIDE, _ONE_BY_ONE, _ON_GPU = 256, 1024, 16384


class Runner:
    """An engine with its tokenizer, its memory budget and its threads.

    Args:
        engine: Runs the graph.
        tokenizer: Pads.
        variant: Which ONNX file it is.
        dimension: Length of the graph's vectors.
        folder: The retriever folder, for messages.
    """

    def __init__(
        self, engine: Engine, tokenizer: TextTokenizer, *, variant: str, dimension: int, folder: Path
    ) -> None:
        self.engine = engine
        self._tokenizer = tokenizer
        self._variant = variant
        self._dimension = dimension
        self._folder = folder
        self._lock = threading.Lock()
        self.budget = _budget(engine)
        self._pool = (
            ThreadPoolExecutor(engine.parallel, thread_name_prefix="stm-encode")
            if engine.parallel > 1
            else None
        )

    def plan(self, lengths: Sequence[int]) -> list[list[int]]:
        """Batches for texts of these many ids, as indices, longest first."""
        if self._variant in BATCH_INVARIANT:
            return token_budget_batches(lengths, self.budget)
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        return [[index] for index in order]

    def encode(self, ids: Sequence[Ids], finished: Callable[[int], None] = lambda count: None) -> Vectors:
        """Encode texts.

        Args:
            ids: n arrays of ids.
            finished: Told the number of texts after each batch, from the calling thread.

        Returns:
            float32 (n, dimension of the graph), of length 1, in the order of ``ids``.

        Raises:
            ProviderError: If one text alone does not fit into memory.
            ArtifactMismatchError: If the graph gives other shapes than its manifest promises.
            ModelFolderError: If it gives vectors that are not finite.
        """
        vectors = np.empty((len(ids), self._dimension), dtype=np.float32)
        for batch, rows in self._results(ids, self.plan([len(row) for row in ids])):
            vectors[batch] = rows
            finished(len(batch))
        return vectors

    def _results(self, ids: Sequence[Ids], batches: list[list[int]]) -> Iterator[tuple[list[int], Vectors]]:
        if self._pool is None or len(batches) == 1:
            for batch in batches:
                yield batch, self._run([ids[index] for index in batch], beside_others=False)
            return
        futures: dict[Future[Vectors], list[int]] = {
            self._pool.submit(self._run, [ids[index] for index in batch], beside_others=True): batch
            for batch in batches
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # after an error or Ctrl-C nothing more is begun
            for future in futures:
                future.cancel()

    def _run(self, ids: list[Ids], *, beside_others: bool) -> Vectors:
        input_ids, mask = self._tokenizer.pad(ids)
        try:
            output = self.engine.run(input_ids, mask, beside_others=beside_others)
        except Exception as error:  # engines raise classes of their own
            if not is_out_of_memory(error):
                raise
            if len(ids) == 1:
                raise too_large(error, len(ids[0])) from error
            self._halve(input_ids.size)
        else:
            return self._checked(output, len(ids))
        middle = len(ids) // 2
        halves = (ids[:middle], ids[middle:])
        return np.concatenate([self._run(half, beside_others=beside_others) for half in halves])

    def _halve(self, tokens: int) -> None:
        with self._lock:
            smaller = max(1, tokens // 2)
            if smaller >= self.budget:
                return
            self.budget = smaller
        logger.warning(
            "A batch of %d tokens did not fit into memory; batches have at most %d tokens from now on.",
            tokens,
            smaller,
        )

    def _checked(self, vectors: Vectors, count: int) -> Vectors:
        if vectors.shape != (count, self._dimension):
            raise ArtifactMismatchError(
                f"{str(self._folder)!r}: the {self._variant} graph gives vectors of shape {vectors.shape}, "
                f"its manifest promises {(count, self._dimension)}. The files do not belong together. "
                f"Run: stm-train doctor {self._folder}"
            )
        if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
            raise ModelFolderError(
                f"{str(self._folder)!r}: the {self._variant} graph gives vectors that are not finite or "
                f"zero, which no search can rank. Take another variant, or run: "
                f"stm-train doctor {self._folder}"
            )
        return unit(vectors)


def _budget(engine: Engine) -> int:
    if engine.on_gpu:
        return _ON_GPU
    return _SIDE_BY_SIDE if engine.parallel > 1 else _ONE_BY_ONE
