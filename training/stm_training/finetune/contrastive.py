"""The contrastive step inside transformers' Trainer, whose loop, schedule and checkpoints are used as is."""

from __future__ import annotations

import json
import logging
import time
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
from stm_training.finetune.checkpoints import WEIGHTS
from stm_training.finetune.collate import Batch, Collator
from stm_training.finetune.gather import Ranks
from stm_training.finetune.lora import adapter_state, load_adapter_state
from stm_training.finetune.out_of_memory import is_out_of_memory, release
from stm_training.finetune.processes import put_from_first, whole
from stm_training.finetune.random_state import RandomState
from stm_training.finetune.sampler import NoDuplicatesBatchSampler
from stm_training.finetune.sharding import load_optimizer, save_optimizer
from stm_training.finetune.step import ContrastiveStep, StepResult

if TYPE_CHECKING:
    from stm_training.finetune.trainer import Progress

_OPTIMIZER = "optimizer.safetensors"
_SCHEDULER = "scheduler.json"

logger = logging.getLogger(__name__)


class ContrastiveTrainer(Trainer):  # type: ignore[misc]
    """Trainer whose step contrasts all texts of a batch; checkpoints hold the trained weights alone.

    Processes are kept together by the step itself: neither accelerate nor DDP wraps the model. DDP would
    start to reduce gradients inside the last backward pass and wait there for a process that ran out of
    memory; the step first agrees that all passes went well.

    Args:
        backbone: The model; sharded already where ``ranks`` says so.
        step: Computes gradients.
        pairs: The training rows.
        sampler: Says which rows meet in which step.
        collator: Tokenises them.
        arguments: Loop, schedule, checkpoints.
        ranks: The processes of this training.
        callbacks: Of transformers' kind.
        progress: Called after each step, in the first process.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        step: ContrastiveStep,
        pairs: Sequence[Pair],
        sampler: NoDuplicatesBatchSampler,
        collator: Collator,
        arguments: TrainingArguments,
        ranks: Ranks,
        callbacks: Sequence[TrainerCallback] = (),
        progress: Progress | None = None,
    ) -> None:
        super().__init__(
            model=backbone,
            args=arguments,
            data_collator=collator,
            train_dataset=pairs,
            callbacks=[_StepReport(self, progress if ranks.rank == 0 else None), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self._step = step
        self._sampler = sampler
        self._ranks = ranks
        self._started = time.monotonic()
        self._result: StepResult | None = None
        self._step_rate = float("nan")

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

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does; a step's time begins with its rows."""
        self._started = time.monotonic()
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Leave the gradients of a batch in the weights; where memory runs out, with smaller micro-batches.

        Raises:
            TrainingError: If the loss is not finite, or memory does not even suffice for single texts.
        """
        model.train()
        self._step_rate = float(self._get_learning_rate())
        before = RandomState.capture(self.args.device)
        while True:
            try:
                self._result = self._step.run(inputs, self.state.global_step, self.accelerator.backward)
                return self._result.loss
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0].rstrip(".") + "."
            # Outside of the handler: the error holds every tensor of the aborted step.
            inputs = self._smaller(model, inputs, reason)
            before.restore()

    def _smaller(self, model: nn.Module, inputs: Batch, reason: str) -> Batch:
        model.zero_grad()
        release(self.args.device)
        if self._ranks.sharded:
            message = (
                f"Memory ran out at step {self.state.global_step + 1}: {reason} A sharded model's processes "
                f"cannot repeat a step. Set a token_budget below {self._step.plan.token_budget} and start "
                f"again; the training goes on from its last checkpoint."
            )
            raise TrainingError(message)
        budget = self._step.plan.token_budget
        smaller = self._step.shrink(inputs, reason)
        logger.warning(
            "Memory ran out at step %d: %s The step is repeated, and training goes on, with micro-batches of "
            "at most %d padded tokens instead of %d, and with GradCache.",
            self.state.global_step + 1,
            reason,
            self._step.plan.token_budget,
            budget,
        )
        return smaller

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As transformers does, but a step whose gradients are not finite is not taken.

        Raises:
            TrainingError: If they are not; the weights are those of the step before.
        """
        norm = super()._clip_grad_norm(model)
        value = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if not bool(torch.isfinite(torch.as_tensor(value))):
            message = (
                f"The gradients' norm is {float(value)} at step {self.state.global_step + 1}, with a finite "
                f"loss, so every later weight would be NaN. Set precision 'fp32', or raise temperature."
            )
            raise TrainingError(message)
        return norm

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        # A wrapper of ours keeps transformers from having accelerate wrap the model.
        return _Whole(self.model) if self._ranks.size > 1 and training else model

    def report(self, state: Any) -> float:
        """Record the step that was just taken in the state that checkpoints carry; returns its loss."""
        result = self._result
        if result is None:
            raise TrainingError("No step was taken, so there is none to record.")
        loss = float(result.loss)
        record: dict[str, Any] = {
            "step": state.global_step,
            "step_loss": loss,
            "tokens": result.tokens,
            "seconds": round(time.monotonic() - self._started, 6),
            "learning_rate": self._step_rate,
        }
        if result.anchor_loss is not None:
            record["anchor_loss"] = result.anchor_loss
        state.log_history.append(record)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers would guess from a model's inputs, which ours are not."""
        return 0

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights; every process must call it where they are sharded."""
        folder = Path(output_dir or self.args.output_dir)
        state = {name: whole(value) for name, value in adapter_state(self.model).items()}
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(state, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        if self._ranks.sharded:
            put_from_first(adapter_state(self.model), state)
        else:
            load_adapter_state(self.model, state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._ranks.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        folder = Path(output_dir)
        save_optimizer(self.optimizer, self._names(), folder / _OPTIMIZER, write=self.args.should_save)
        if self.args.should_save:
            (folder / _SCHEDULER).write_text(json.dumps(self.lr_scheduler.state_dict()), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._ranks.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.optimizer, self._names(), Path(checkpoint) / _OPTIMIZER)
        state = json.loads((Path(checkpoint) / _SCHEDULER).read_text(encoding="utf-8"))
        self.lr_scheduler.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _names(self) -> dict[Tensor, str]:
        return {value: name for name, value in adapter_state(self.model).items()}


class _Whole(nn.Module):
    """A model as it is, under another identity."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class _StepReport(TrainerCallback):  # type: ignore[misc]
    """Keeps each step's figures in the state that checkpoints carry, and tells the caller."""

    def __init__(self, trainer: ContrastiveTrainer, progress: Progress | None) -> None:
        self._trainer = trainer
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = self._trainer.report(state)
        if self._progress is not None:
            self._progress(state.global_step, state.max_steps, loss)
