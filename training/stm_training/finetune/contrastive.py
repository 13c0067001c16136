"""The contrastive step inside transformers' Trainer, whose loop, schedule and checkpoints are used as is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stm_retriever.errors import TrainingError
from stm_training.data.records import Pair
from stm_training.finetune.backbone import Backbone
from stm_training.finetune.collate import Batch, Collator, MicroBatch
from stm_training.finetune.lora import adapter_state, load_adapter_state
from stm_training.finetune.losses import info_nce, stm_loss
from stm_training.finetune.precision import autocast
from stm_training.finetune.sampler import NoDuplicatesBatchSampler
from stm_training.finetune.settings import TrainSettings

if TYPE_CHECKING:
    from stm_training.finetune.trainer import Progress

# On CPUs the fused attention's backward pass is slow (measured: a whole step at 128 tokens takes 1.4 times as
# long), but the plain one keeps every attention weight, which grows with the square of the length.
_SHORT = 192

_ADAPTER_STATE = "adapter_state.safetensors"


class ContrastiveTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose step encodes all texts of a batch and contrasts them; checkpoints hold the adapter alone.

    Args:
        backbone: A backbone with an adapter attached.
        settings: Loss and precision.
        pairs: The training rows.
        sampler: Says which rows meet in which step.
        collator: Tokenises them.
        arguments: Loop, schedule, checkpoints.
        progress: Called after each step.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        settings: TrainSettings,
        pairs: Sequence[Pair],
        sampler: NoDuplicatesBatchSampler,
        collator: Collator,
        arguments: TrainingArguments,
        progress: Progress | None,
    ) -> None:
        super().__init__(
            model=backbone,
            args=arguments,
            data_collator=collator,
            train_dataset=pairs,
            callbacks=[_StepReport(self, progress)],
        )
        self.remove_callback(PrinterCallback)
        self._settings = settings
        self._sampler = sampler
        self._config = backbone.model.config
        self._attention_code = self._config._attn_implementation
        self.step_loss = float("nan")

    @property
    def losses(self) -> tuple[float, ...]:
        """Loss of every step so far, those before a resume included."""
        return tuple(float(entry["step_loss"]) for entry in self.state.log_history if "step_loss" in entry)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Rows as our sampler wants them."""
        loader: DataLoader[Any] = DataLoader(
            self.train_dataset, batch_sampler=self._sampler, collate_fn=self.data_collator
        )
        return loader

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Encode every text of the batch and contrast queries with documents.

        Raises:
            TrainingError: If the loss is not finite; the weights are those of the step before.
        """
        micro_batches = inputs["micro_batches"]
        with autocast(micro_batches[0]["input_ids"].device, self._settings.precision):
            parts = [self._encode(model, part) for part in micro_batches]
        order = torch.cat([part["rows"] for part in micro_batches]).argsort()
        loss = self._contrast(torch.cat(parts)[order], inputs)
        self.step_loss = float(loss.detach())
        if not torch.isfinite(loss):
            message = (
                f"The loss is {self.step_loss} at step {self.state.global_step + 1}, so every later weight "
                f"would be NaN. Lower learning_rate ({self._settings.learning_rate}) or raise temperature "
                f"({self._settings.temperature}), or set precision 'fp32'; look for broken base weights."
            )
            raise TrainingError(message)
        return loss

    def _encode(self, model: nn.Module, part: MicroBatch) -> Tensor:
        """Encode one micro-batch with the attention code that is fastest for its length."""
        ids = part["input_ids"]
        short = ids.device.type == "cpu" and ids.shape[1] <= _SHORT
        self._config._attn_implementation = "eager" if short else self._attention_code
        vectors: Tensor = model(ids, part["attention_mask"])[1]
        return vectors

    def _contrast(self, vectors: Tensor, batch: Batch) -> Tensor:
        counts = batch["negative_counts"]
        size = len(counts)
        queries, positives, negatives = vectors[:size], vectors[size : 2 * size], vectors[2 * size :]
        temperature, excluded = self._settings.temperature, batch["excluded"]
        if self._settings.loss == "info_nce":
            return info_nce(
                queries,
                positives,
                negatives,
                temperature=temperature,
                excluded=excluded,
                excluded_negatives=batch["excluded_negatives"],
            )
        own, has_negative = _group_by_row(negatives, counts)
        return stm_loss(
            queries, positives, own, temperature=temperature, has_negative=has_negative, excluded=excluded
        )

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers would guess from a model's inputs, which ours are not."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu() for name, value in adapter_state(self.model).items()}
        save_file(state, folder / _ADAPTER_STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_adapter_state(self.model, load_file(Path(resume_from_checkpoint) / _ADAPTER_STATE))


class _StepReport(TrainerCallback):  # type: ignore[misc]
    """Keeps each step's loss in the state that checkpoints carry, and tells the caller."""

    def __init__(self, trainer: ContrastiveTrainer, progress: Progress | None) -> None:
        self._trainer = trainer
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = self._trainer.step_loss
        state.log_history.append({"step": state.global_step, "step_loss": loss})
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps, loss)


def training_arguments(
    settings: TrainSettings, checkpoints: Path, *, steps: int, seed: int
) -> TrainingArguments:
    """Translate our settings; anything not named is transformers' default."""
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=min(settings.warmup_steps, steps // 10),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        save_strategy="no" if settings.save_steps is None else "steps",
        save_steps=settings.save_steps or 1,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
    )


def _group_by_row(negatives: Tensor, counts: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Lay (m, dimension) negatives out as (batch, most, dimension) with a mask (batch, most)."""
    most = int(counts.max()) if len(counts) else 0
    if most == 0:
        return None, None
    present = torch.arange(most, device=counts.device)[None] < counts[:, None]
    # Row i's n-th negative is number n of its own, after those of the rows before; absent ones point to 0.
    place = (counts.cumsum(0) - counts)[:, None] + torch.arange(most, device=counts.device)[None]
    return negatives[torch.where(present, place, torch.zeros_like(place))], present
