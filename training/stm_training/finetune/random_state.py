"""The state of torch's random numbers, so that a forward pass can be run again with the same dropout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """What torch draws from: the CPU's generator and, where the model lies elsewhere, the device's.

    Attributes:
        device: Whose generator ``own`` is.
        cpu: State of the CPU's generator, uint8.
        own: State of the device's generator, uint8; ``None`` on a CPU.
    """

    device: torch.device
    cpu: Tensor
    own: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """Read the state that the next draw will start from."""
        own = None
        if device.type == "cuda":
            own = torch.cuda.get_rng_state(device)
        elif device.type == "mps":
            own = torch.mps.get_rng_state()
        return cls(device, torch.get_rng_state(), own)

    def restore(self) -> None:
        """Make the next draw start from here again."""
        torch.set_rng_state(self.cpu)
        if self.own is None:
            return
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self.own, self.device)
        else:
            torch.mps.set_rng_state(self.own)
