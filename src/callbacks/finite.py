"""Stop before a non-finite number reaches the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class FiniteGuard(Callback):
    """Raises before the optimizer step whose loss or gradient is not finite.

    Under DDP the gradients are already summed over the ranks, so every rank raises at the same
    step. With accumulated gradients the loss is that of the last micro-batch.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        self.loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        terms: dict[str, Any] = {"loss": self.loss, "gradient norm": norm}
        # One transfer for both terms.
        finite = torch.stack([torch.isfinite(v.float()) for v in terms.values()]).tolist()
        if not all(finite):
            pairs = zip(terms.items(), finite, strict=True)
            bad = [f"{name} = {value.item()}" for (name, value), ok in pairs if not ok]
            raise FloatingPointError(
                f"step {trainer.global_step}: {', '.join(bad)}; stopped before the optimizer "
                "step, so the weights are those of the step before"
            )
