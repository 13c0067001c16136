"""One forward pass of a micro-batch, in the precision and with the attention code that are fastest for it."""

from __future__ import annotations

from torch import Tensor

from stm_training.finetune.backbone import Backbone
from stm_training.finetune.micro_batches import MicroBatch, to_device
from stm_training.finetune.precision import Precision, autocast

# On CPUs the fused attention's backward pass is slow (measured: a whole step at 128 tokens takes 1.4 times as
# long), but the plain one keeps every attention weight, which grows with the square of the length.
SHORT = 192


class ForwardPass:
    """Encodes micro-batches.

    Args:
        backbone: The model.
        precision: Of the products.
    """

    def __init__(self, backbone: Backbone, precision: Precision) -> None:
        self._backbone = backbone
        self._precision: Precision = precision
        self._config = backbone.model.config
        self._attention_code = self._config._attn_implementation

    def __call__(self, part: MicroBatch) -> Tensor:
        """Encode one micro-batch of m texts, wherever its tensors lie.

        Returns:
            (m, d) float32 unit vectors on the model's device, with a graph where gradients are enabled.
        """
        device = self._backbone.device
        part = to_device(part, device)
        ids = part["input_ids"]
        short = device.type == "cpu" and ids.shape[1] <= SHORT
        self._config._attn_implementation = "eager" if short else self._attention_code
        try:
            # Entered anew for each micro-batch: autocast keeps its bf16 copy of a weight until it is left,
            # and gradients that meet at a shared copy are summed in bf16 instead of float32.
            with autocast(device, self._precision):
                vectors: Tensor = self._backbone(ids, part["attention_mask"])[1]
        finally:
            self._config._attn_implementation = self._attention_code
        return vectors
