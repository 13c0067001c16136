"""The parity gate: an ONNX file gives the vectors of the model that it was made from, or is not written.

Each row of a padded batch is compared with the same ids alone and unpadded in a *freshly loaded* torch model:
tracing changes the rotary buffers of some models, so the traced one is no witness, and a batch in torch could
share a mistake with a batch in the graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from stm_retriever.atomic_write import write_bytes_atomically
from stm_retriever.errors import ExportParityError
from stm_retriever.onnx_session import open_session

if TYPE_CHECKING:
    from stm_training.finetune.backbone import Backbone

Side = Literal["none", "right", "left"]
Ids = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]

LIMIT = 1e-4
# Attention grows with the square of the length; beyond this a gate would need more memory than the model.
LONGEST_CHECKED = 2048


@dataclass(frozen=True)
class ParityCase:
    """One batch, and how far its vectors lie from those of its rows alone."""

    what: str
    batch: int
    length: int
    padding: Side
    max_abs_diff: float
    min_cosine: float


@dataclass
class ParityReport:
    """What the gate saw.

    Attributes:
        limit: Largest absolute difference allowed in a coordinate of a unit vector.
        cases: The graph against torch.
        longest_checked: Longest input that was tried, in tokens.
        native: transformers' own forward against the graph, or why the two cannot be compared.
        native_attention: What transformers' own forward does when it loads the folder.
    """

    limit: float
    longest_checked: int
    cases: list[ParityCase] = field(default_factory=list)
    native: ParityCase | None = None
    native_attention: str = ""

    @property
    def max_abs_diff(self) -> float:
        """Largest difference over all cases."""
        return max(case.max_abs_diff for case in self.compared)

    @property
    def min_cosine(self) -> float:
        """Smallest cosine over all cases."""
        return min(case.min_cosine for case in self.compared)

    @property
    def compared(self) -> list[ParityCase]:
        """All cases, the native one included."""
        return self.cases if self.native is None else [*self.cases, self.native]

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers as ``onnx/parity.json`` holds them."""
        return {
            "limit": self.limit,
            "max_abs_diff": self.max_abs_diff,
            "min_cosine": self.min_cosine,
            "longest_checked": self.longest_checked,
            "native_attention": self.native_attention,
            "native": None if self.native is None else asdict(self.native),
            "cases": [asdict(case) for case in self.cases],
        }


def write_parity(path: Path, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the numbers by variant (each report's ``as_dict``)."""
    write_bytes_atomically(path, (json.dumps(reports, indent=2) + "\n").encode("ascii"))


def parity_gate(
    onnx_path: Path,
    load_fresh: Callable[[], Backbone],
    *,
    limit: float = LIMIT,
    longest: int = LONGEST_CHECKED,
    seed: int = 0,
) -> ParityReport:
    """Compares an ONNX file with torch at batch sizes, lengths and paddings not seen at export.

    Args:
        onnx_path: The file to judge.
        load_fresh: Loads the model anew from disk; called once.
        limit: Largest absolute difference allowed in a coordinate.
        longest: Cap of the longest length tried; the model's maximum length if that is shorter.
        seed: Of the random ids.

    Returns:
        The numbers; all within the limit.

    Raises:
        ExportParityError: If any case is over the limit or not finite; the message has the numbers.
    """
    import torch

    backbone = load_fresh().eval()
    session = open_session(onnx_path, device="cpu")
    longest = min(longest, backbone.max_length)
    report = ParityReport(limit=limit, longest_checked=longest)
    draw = random_rows(_vocabulary(backbone), backbone.pad_token_id, seed)
    with torch.inference_mode():
        for batch, length in ((1, 1), (1, 3), (3, 33), (5, 130), (1, longest), (2, longest)):
            rows = draw(batch, min(length, longest))
            alone = np.stack([_torch_alone(backbone, row) for row in rows])
            sides: tuple[Side, ...] = ("none",) if batch == 1 else ("right", "left")
            for side in sides:
                graph = run_graph(session, rows, side, backbone.pad_token_id)
                report.cases.append(compare("graph against torch", rows, side, graph, alone))
        _compare_native(report, backbone, session, draw(3, min(40, longest)))
    _judge(report, onnx_path)
    return report


def _vocabulary(backbone: Backbone) -> int:
    return int(backbone.model.get_input_embeddings().weight.shape[0])


def random_rows(vocabulary: int, pad_token_id: int, seed: int) -> Callable[[int, int], list[Ids]]:
    """Returns a function of (batch, length) that draws rows of falling length, without the padding id."""
    generator = np.random.default_rng(seed)
    everything = np.arange(vocabulary, dtype=np.int64)
    allowed = everything[everything != pad_token_id]

    def rows(batch: int, length: int) -> list[Ids]:
        lengths = [max(1, length - (number * length) // batch) for number in range(batch)]
        return [generator.choice(allowed, size=size) for size in lengths]

    return rows


def _pad(rows: list[Ids], side: Side, pad_token_id: int) -> tuple[Ids, Ids]:
    # not TextTokenizer.pad: a witness should not share code with the accused
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[number, start : start + len(row)] = row
        mask[number, start : start + len(row)] = 1
    return ids, mask


def _torch_alone(backbone: Backbone, row: Ids) -> Vectors:
    import torch

    ids = torch.from_numpy(row[None])
    vector: Vectors = backbone(ids, torch.ones_like(ids))[1][0].float().numpy()
    return vector


def run_graph(session: Any, rows: list[Ids], side: Side, pad_token_id: int) -> Vectors:
    """Runs a graph on rows padded on one side (on the right for ``"none"``); (rows, dimension)."""
    ids, mask = _pad(rows, side, pad_token_id)
    outputs = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
    vectors: Vectors = outputs[0]
    return vectors


def compare(what: str, rows: list[Ids], side: Side, found: Vectors, wanted: Vectors) -> ParityCase:
    """Returns how far the vectors of some rows lie from those wanted."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (found * wanted).sum(axis=1) / np.maximum(norms, 1e-12)
    return ParityCase(
        what=what,
        batch=len(rows),
        length=max(map(len, rows)),
        padding=side,
        max_abs_diff=float(np.abs(found - wanted).max()),
        min_cosine=float(cosines.min()),
    )


def _compare_native(report: ParityReport, backbone: Backbone, session: Any, rows: list[Ids]) -> None:
    """Adds the comparison with transformers' own mask, where that attends as the folder says."""
    report.native_attention = native_attention(backbone)
    if report.native_attention != backbone.attention:
        return
    # right padding: the native forward of absolute-position encoders is wrong under left padding
    native = _native_vectors(backbone, rows)
    graph = run_graph(session, rows, "right", backbone.pad_token_id)
    report.native = compare("graph against transformers' own forward", rows, "right", graph, native)


def _native_states(backbone: Backbone, ids: Ids, mask: Ids) -> npt.NDArray[np.float32]:
    import torch

    states = backbone.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    array: npt.NDArray[np.float32] = states.last_hidden_state.float().numpy()
    return array


def _native_vectors(backbone: Backbone, rows: list[Ids]) -> Vectors:
    ids, mask = _pad(rows, "right", backbone.pad_token_id)
    states = _native_states(backbone, ids, mask)
    pooled = [_pool(backbone.pooling, state[: len(row)]) for state, row in zip(states, rows, strict=True)]
    return np.stack([vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in pooled])


def _pool(pooling: str, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    pooled: npt.NDArray[np.float32]
    if pooling == "mean":
        pooled = states.mean(axis=0)
    else:
        pooled = states[0] if pooling == "cls" else states[-1]
    return pooled


def native_attention(backbone: Backbone) -> Literal["causal", "bidirectional"]:
    """Finds out what transformers' own forward does: does the first token see the last one change?"""
    import torch

    size = _vocabulary(backbone)
    one = np.asarray([[size - 2, size - 3, size - 4]], dtype=np.int64).clip(min=0)
    other = one.copy()
    other[0, -1] = max(0, size - 5)
    with torch.inference_mode():
        before, after = (_native_states(backbone, ids, np.ones_like(ids)) for ids in (one, other))
    return "bidirectional" if not np.array_equal(before[0, 0], after[0, 0]) else "causal"


def _judge(report: ParityReport, onnx_path: Path) -> None:
    # "not <=" so that NaN is a miss too
    missed = [case for case in report.compared if not case.max_abs_diff <= report.limit]
    if not missed:
        return
    worst = max(missed, key=lambda case: np.nan_to_num(case.max_abs_diff, nan=np.inf))
    lines = "; ".join(
        f"batch {case.batch} x length {case.length}, padding {case.padding} ({case.what}): "
        f"max abs diff {case.max_abs_diff:.3g}, min cosine {case.min_cosine:.6f}"
        for case in missed
    )
    raise ExportParityError(
        f"{onnx_path.name} does not give the model's vectors: {len(missed)} of {len(report.compared)} cases "
        f"are over the limit of {report.limit:g}, the worst by a max abs diff of {worst.max_abs_diff:.3g}. "
        f"{lines}. "
        "Served like this, queries and documents would be ranked by other vectors than those that were "
        "evaluated, so nothing was written. Try another attention mode or a smaller max_length, and please "
        "report the model family with these numbers."
    )
