"""What every LightningModule of the project does the same way."""

from collections.abc import Callable, Iterable

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

MakeOptimizer = Callable[[Iterable[Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class TrainedModule(pl.LightningModule):
    """Optimizer and schedule from partials; everything else is the subclass's."""

    def __init__(self, optimizer: MakeOptimizer, lr_scheduler: MakeScheduler) -> None:
        super().__init__()
        self.make_optimizer, self.make_lr_scheduler = optimizer, lr_scheduler
        self.gradient_norm: Tensor | None = None  # of this step, where somebody has found it

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


def parameters_of(optimizer: Optimizer) -> list[Parameter]:
    """What is trained, without a walk over the network."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    return [p.grad for p in parameters_of(optimizer) if p.grad is not None]
