"""One training on its own, as ``stm-train finetune`` runs it: resumable, watched, written into one folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from stm_retriever.errors import ConfigError
from stm_training.data.records import Pair
from stm_training.data.whole_files import write_whole_text
from stm_training.evaluate.significance import paired_bootstrap
from stm_training.evaluate.versions import installed_versions
from stm_training.finetune.backbone import Backbone, BackboneSpec, load_backbone
from stm_training.finetune.checkpoints import inputs_key
from stm_training.finetune.history import DEV, DevScore, curves, evaluations, write_history
from stm_training.finetune.live import LiveFigures
from stm_training.finetune.lora import bake_adapter
from stm_training.finetune.settings import TrainSettings
from stm_training.finetune.stopping import StopWithCheckpoint
from stm_training.finetune.tensorboard import FOLDER, TensorBoard
from stm_training.finetune.trainer import TrainResult, train_expert
from stm_training.pipeline.collections import Problem
from stm_training.pipeline.console import RunConsole
from stm_training.pipeline.watching import Told, dev_score, is_first_process
from stm_training.report.curves import write_curves

if TYPE_CHECKING:
    from stm_retriever.folder import Manifest

RECORD, HISTORY, CURVES = "finetune.json", "history.json", "curves.html"
_OURS = (RECORD, HISTORY, CURVES, FOLDER, "adapter", "model", "checkpoints", "best", "memory_probe.json")


@dataclass(frozen=True)
class Finetuning:
    """A training, as asked for.

    Attributes:
        spec: The base.
        pairs: Training rows.
        settings: Loss, schedule, adapter.
        out: The folder of everything that it leaves.
        seed: Of every draw.
        dev: Development queries; ``None``: nothing is scored, and the last weights are kept.
        guards: Collections of other domains that must not get worse.
        max_guard_loss: Largest loss on a guard, in nDCG@10 points (0-100).
        anchor_texts: General texts of the term against forgetting.
    """

    spec: BackboneSpec
    pairs: Sequence[Pair]
    settings: TrainSettings
    out: Path
    seed: int = 0
    dev: Problem | None = None
    guards: Sequence[Problem] = ()
    max_guard_loss: float | None = None
    anchor_texts: Sequence[str] = ()

    def key(self) -> str:
        """A hash of all that decides the result: a folder of another key is not gone on with."""
        digest = hashlib.sha256(
            inputs_key(self.spec, self.pairs, self.settings, self.seed, self.anchor_texts).encode()
        )
        for problem in (self.dev, *self.guards):
            if problem is not None:
                _add_problem(digest.update, problem)
        digest.update(json.dumps(self.max_guard_loss).encode())
        return digest.hexdigest()

    def score(self, backbone: Backbone) -> DevScore:
        """Score a model in training."""
        if self.dev is None:
            raise ConfigError("There are no development queries to score on. Name a collection with --dev.")
        return dev_score(backbone, [self.dev], self.guards)


def finetune(job: Finetuning, console: RunConsole, *, overwrite: bool = False) -> dict[str, Any]:
    """Train, or go on with a training that was stopped, or read what a finished one wrote.

    Args:
        job: What to train.
        console: Where a person watches.
        overwrite: Whether what another training left in the folder may be removed.

    Returns:
        The figures; the same as in ``finetune.json``.

    Raises:
        ConfigError: If the folder holds something else.
        TrainingError, DataError: See :func:`~stm_training.finetune.trainer.train_expert`.
        KeyboardInterrupt: After Ctrl-C; the checkpoint is written.
    """
    key = job.key()
    figures = _begin(job.out, key, overwrite=overwrite)
    if figures is not None:
        return figures
    result = _train(job, console)
    figures = _figures(job, result)
    if is_first_process():
        kept = [entry for entry in result.history if "step_loss" in entry or DEV in entry]
        write_history(job.out / HISTORY, kept)
        drawn = curves(kept, best_step=result.best_step)
        limit = job.max_guard_loss if job.guards else None
        write_curves(job.out / CURVES, drawn, name=job.out.resolve().name, max_guard_loss=limit)
        record = {"key": key, "result": figures, "versions": installed_versions()}
        write_whole_text(job.out / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return figures


def export_trained(
    job: Finetuning, figures: Mapping[str, Any], out: Path, *, overwrite: bool, tell: Callable[[str], None]
) -> Manifest:
    """Write what was trained as a retriever folder.

    Raises:
        ConfigError: If the target is taken.
        ExportParityError: If the ONNX file gives other vectors.
    """
    from stm_training.export.folder_writer import write_retriever_folder

    trained = job.out / str(figures["model"])
    if job.settings.adapter == "full":
        backbone = load_backbone(replace(job.spec, source=str(trained), revision=None))
    else:
        backbone = load_backbone(job.spec)
        bake_adapter(trained, backbone)
    base: dict[str, Any] = {"name": Path(job.spec.source).name, "revision": job.spec.revision}
    if not Path(job.spec.source).is_dir():
        base = {"name": job.spec.source, "hub_name": job.spec.source, "revision": job.spec.revision}
    expert = {
        "name": job.out.resolve().name,
        "pairs": len(job.pairs),
        "steps": figures["steps"],
        "best_step": figures["best_step"],
        "batch_size": job.settings.batch_size,
    }
    return write_retriever_folder(
        backbone,
        out,
        name=out.absolute().name,
        base=base,
        experts=[expert],
        dimensions=job.settings.matryoshka,
        overwrite=overwrite,
        progress=tell,
    )


def _begin(out: Path, key: str, *, overwrite: bool) -> dict[str, Any] | None:
    """The figures of a finished training of this key; else the folder is made ready."""
    there = _read_record(out)
    if there.get("key") == key:
        figures: dict[str, Any] | None = there.get("result")
        return figures
    if out.is_dir() and any(out.iterdir()) and not there:
        message = f"{out} is not empty and holds no {RECORD}, so it is none of ours. Name another --out."
        raise ConfigError(message)
    if there and not overwrite:
        state = "a finished training" if "result" in there else "a training that was stopped,"
        message = (
            f"{out} holds {state} of other arguments or other data, so this one cannot go on from it. Name "
            f"another --out, repeat the command as it was, or pass --overwrite to remove that training."
        )
        raise ConfigError(message)
    if is_first_process():
        for name in _OURS:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        write_whole_text(out / RECORD, json.dumps({"key": key}) + "\n")
    return None


def _read_record(out: Path) -> dict[str, Any]:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, not a folder. Name another --out.")
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or "key" not in found:
        message = f"{out / RECORD} is damaged, so what lies beside it is unknown. Name another --out."
        raise ConfigError(message)
    return found


def _train(job: Finetuning, console: RunConsole) -> TrainResult:
    stop = StopWithCheckpoint(console.announce)
    told = Told(job.pairs, job.settings, console)
    board = TensorBoard(job.out / FOLDER)  # opens no file but in the first process
    callbacks: list[TrainerCallback] = [told, board]
    with ExitStack() as stack:
        stack.callback(board.close)
        if is_first_process():
            callbacks.append(LiveFigures(stack.enter_context(console.bar("training"))))
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            callbacks.append(stop)
            stack.enter_context(stop.listening())
        result = train_expert(
            job.spec,
            job.pairs,
            settings=job.settings,
            out_dir=job.out,
            seed=job.seed,
            callbacks=callbacks,
            anchor_texts=job.anchor_texts,
            score=None if job.dev is None else told.telling(job.score),
            max_guard_loss=job.max_guard_loss,
        )
        board.write(result.history)
    return result


def _figures(job: Finetuning, result: TrainResult) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "base": job.spec.source,
        "pairs": len(job.pairs),
        "seed": job.seed,
        "settings": job.settings.model_dump(mode="json"),
        "model": result.adapter_dir.name,
        "steps": result.steps,
        "seconds": round(result.seconds, 2),
        "first_loss": result.losses[0] if result.losses else None,
        "last_loss": result.losses[-1] if result.losses else None,
        "token_budget": result.token_budget,
        "best_step": result.best_step,
    }
    return figures if job.dev is None else figures | _gains(job, result)


def _gains(job: Finetuning, result: TrainResult) -> dict[str, Any]:
    by_step = {one.step: one.score for one in evaluations(result.history)}
    before, after = by_step[0], by_step[result.best_step or 0]
    # Sorted: a checkpoint keeps no order, and the intervals' draws depend on it.
    diffs = [after.queries[name] - before.queries[name] for name in sorted(before.queries)]
    gain = paired_bootstrap(diffs, seed=job.seed)
    return {
        "dev": {
            "queries": len(diffs),
            "before": before.dev,
            "after": after.dev,
            "delta": gain.mean,
            "ci95": [gain.lo, gain.hi],
        },
        "guards": {
            name: {"before": before.guards[name], "after": after.guards[name]} for name in before.guards
        },
    }


def _add_problem(add: Callable[[bytes], None], problem: Problem) -> None:
    head = [problem.name, problem.exclude_self, dict(problem.queries)]
    add(json.dumps([*head, {name: dict(row) for name, row in problem.qrels.items()}]).encode())
    for passage in problem.passages:
        add(json.dumps([passage.id, passage.parent_id, passage.content]).encode())
