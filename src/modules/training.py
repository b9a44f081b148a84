"""What every LightningModule of the project does the same way."""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
from jaxtyping import Float, Int64
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .functional.variational import respaced

MakeOptimizer = Callable[[Iterable[Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class TrainedModule(pl.LightningModule):
    """Optimizer and schedule from partials; everything else is the subclass's."""

    def __init__(self, optimizer: MakeOptimizer, lr_scheduler: MakeScheduler) -> None:
        super().__init__()
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.gradient_norm: Tensor | None = None  # of this step, where somebody has found it
        self.shown: dict[str, Tensor] = {}  # of the last training step, where a bar reads it

    def log(self, name: str, value: Any, prog_bar: bool = False, *args: Any, **kwargs: Any) -> None:
        """Lightning reads what is for a bar after every batch, and a GPU's host waits there; it
        does so, too, where there is no bar.

        What a training step shows is left in `shown` instead, for a bar that reads it when it is
        drawn (callbacks.progress.ProgressBar: `reads_shown`). Other bars get it Lightning's way.
        """
        if prog_bar and self.training and isinstance(value, Tensor):
            bar = self._trainer and self._trainer.progress_bar_callback
            if bar is None or getattr(bar, "reads_shown", False):
                self.shown[name] = value.detach()
                prog_bar = False
        super().log(name, value, prog_bar, *args, **kwargs)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        schedule = self.make_lr_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the global norm, and log what it was before.

        Lightning refuses to clip for a fused optimizer under autocast, because fp16 gradients are
        unscaled inside its step. Without a scaler there is nothing to unscale.
        """
        norm, self.gradient_norm = self.gradient_norm, None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # Under FSDP a parameter is this process's part of it: the wrapper knows the whole norm.
        sharded = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if sharded is not None:
            norm = sharded(gradient_clip_val)
        else:
            if norm is None:
                norm = get_total_norm(gradients_of(optimizer), foreach=True)
            clip_grads_with_norm_(parameters_of(optimizer), gradient_clip_val, norm, foreach=True)
        self.log("train/grad_norm", norm)


def steps_of(
    alphas_cumprod: Float[Tensor, " t"], num_train_steps: int | None
) -> Int64[Tensor, " n"]:
    """The steps of the schedule that are trained on, evenly spaced; None is all of them. ValueError
    for more than it has, and for fewer than one."""
    length = len(alphas_cumprod)
    num = length if num_train_steps is None else num_train_steps
    if not 1 <= num <= length:
        raise ValueError(f"module.num_train_steps: found {num}, expected 1 to {length}")
    timesteps, _ = respaced(alphas_cumprod, num)
    return timesteps


def parameters_of(optimizer: Optimizer) -> list[Parameter]:
    """What is trained, without a walk over the network."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    return [p.grad for p in parameters_of(optimizer) if p.grad is not None]
