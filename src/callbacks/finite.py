"""Keep numbers that are not finite away from the weights."""

import logging
import math
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ..modules.training import TrainedModule, gradients_of
from .ema import Ema
from .rollback import can_roll_back, roll_back
from .saving import newest_checkpoint
from .spikes import SpikeDetector
from .stops import GaveUp
from .throughput import is_logged_step

log = logging.getLogger(__name__)

ON_BAD = ("stop", "skip")


class FiniteGuard(Callback):
    """A step whose loss or gradient is not finite on any rank is taken on none.

    `stop`: the run ends there with exit code 76. `skip`: the step is left out. Weights, moments of
    the optimizer and the average keep every bit; the data, the count of steps and with it the
    learning-rate schedule go on, so that a step still names its batch. `max_consecutive` such steps
    in a row bring weights, moments and average back to the newest checkpoint (the data still go
    on); after `max_rollbacks` of these, where there is no checkpoint, or where weights are sharded,
    the run ends with exit code 76. `forget_after` good steps (our choice) renew that budget. With
    `spike` a loss that is finite but stands out is treated alike. `train/skipped` counts the steps
    left out.

    The loss is that of all ranks and accumulated micro-batches. Agreement takes one small reduction
    and one transfer to the host a step. Under a GradScaler an overflow of the gradients alone is
    the scaler's to handle: it leaves the step out and lowers its scale; it is counted, and does not
    use up the budget.
    """

    def __init__(
        self,
        on_bad: str = "stop",
        *,
        max_consecutive: int = 3,
        max_rollbacks: int = 2,
        forget_after: int = 1000,
        spike: SpikeDetector | None = None,
    ) -> None:
        if on_bad not in ON_BAD:
            raise ValueError(f"callbacks.finite.on_bad: found {on_bad}, expected one of {ON_BAD}")
        if max_consecutive < 1 or max_rollbacks < 0 or forget_after < 1:
            raise ValueError(
                f"callbacks.finite: found max_consecutive={max_consecutive} "
                f"max_rollbacks={max_rollbacks} forget_after={forget_after}, expected at least "
                "1, 0 and 1"
            )
        self.on_bad = on_bad
        self.max_consecutive, self.max_rollbacks = max_consecutive, max_rollbacks
        self.forget_after, self.spike = forget_after, spike
        self.num_skipped = self.num_bad = self.num_good = self.num_rollbacks = 0
        self.num_logged: int | None = None
        self.loss: Tensor | None = None
        self.reason = ""

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        loss = loss.detach().float()
        self.loss = loss if self.loss is None else self.loss + loss

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        loss, norm = self.measure(optimizer)
        bad_loss, bad_norm, mean_loss = self.agree(trainer, loss, norm)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if bad_norm and not bad_loss and scaler is not None:
            self.num_skipped += 1
            hold_average(trainer)
            return
        if bad_loss or bad_norm:
            self.reason = describe(loss, norm)
        elif self.spike is not None and mean_loss > (bound := self.spike.bound()):
            self.reason = f"loss = {mean_loss:.4g}, a spike over {bound:.4g}"
        else:
            self.accept(mean_loss)
            if isinstance(pl_module, TrainedModule):
                pl_module.gradient_norm = norm  # clipping need not find it again
            return
        if self.on_bad == "stop":
            raise GaveUp(
                f"step {trainer.global_step}: {self.reason}; stopped before the optimizer step, "
                "so the weights are those of the step before"
            )
        drop_gradients(optimizer, scaler)
        hold_average(trainer)
        self.num_skipped += 1
        self.num_bad, self.num_good = self.num_bad + 1, 0
        if trainer.is_global_zero:
            text = "step %d: %s; left out, %d in a row"
            log.warning(text, trainer.global_step, self.reason, self.num_bad)

    def measure(self, optimizer: Optimizer) -> tuple[Tensor, Tensor]:
        """(loss, norm of the gradient) of this rank."""
        assert self.loss is not None
        loss, self.loss = self.loss, None
        return loss, get_total_norm(gradients_of(optimizer)).to(loss.device)

    def agree(self, trainer: pl.Trainer, loss: Tensor, norm: Tensor) -> tuple[bool, bool, float]:
        """(is a loss not finite, is a gradient not finite, mean loss): the same on all ranks."""
        finite_loss = torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)
        bad_loss, bad_norm = (~torch.isfinite(v.float()) for v in (loss, norm))
        terms = torch.stack([bad_loss.float(), bad_norm.float(), finite_loss])
        total = trainer.strategy.reduce(terms, reduce_op="sum")
        assert isinstance(total, Tensor)
        num_bad_losses, num_bad_norms, sum_of_losses = total.tolist()
        return num_bad_losses > 0, num_bad_norms > 0, sum_of_losses / trainer.world_size

    def accept(self, loss: float) -> None:
        self.num_bad, self.num_good = 0, self.num_good + 1
        if self.num_good >= self.forget_after:
            self.num_rollbacks = 0
        if self.spike is not None:
            self.spike.add(loss)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if self.on_bad == "stop":
            return
        if self.num_skipped != self.num_logged or is_logged_step(trainer):
            # A tensor on the CPU: Lightning would copy a number to the device, and wait for it.
            pl_module.log("train/skipped", torch.tensor(float(self.num_skipped)))
            self.num_logged = self.num_skipped
        if self.num_bad == self.max_consecutive:
            self.num_bad = 0
            self.go_back(trainer, pl_module)

    def go_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        bad = f"step {trainer.global_step - 1}: {self.max_consecutive} bad steps in a row, the last"
        if self.num_rollbacks == self.max_rollbacks:
            raise GaveUp(
                f"{bad} with {self.reason}, after {self.num_rollbacks} returns to a checkpoint; "
                "gave up"
            )
        if not can_roll_back(trainer):
            raise GaveUp(f"{bad} with {self.reason}, and no way back for sharded weights; gave up")
        path = newest_checkpoint(trainer)
        if path is None:
            raise GaveUp(f"{bad} with {self.reason}, and no checkpoint to return to; gave up")
        self.num_rollbacks += 1
        step = roll_back(trainer, pl_module, path)
        if trainer.is_global_zero:
            text = "%s with %s: back to the weights of step %d (%s), return %d of %d"
            budget = (self.num_rollbacks, self.max_rollbacks)
            log.warning(text, bad, self.reason, step, path, *budget)

    def state_dict(self) -> dict[str, Any]:
        counts = ("num_skipped", "num_bad", "num_good", "num_rollbacks")
        spike = {} if self.spike is None else {"spike": self.spike.state_dict()}
        return {name: getattr(self, name) for name in counts} | spike

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        counts = dict(state_dict)
        spike = counts.pop("spike", None)
        if self.spike is not None and spike is not None:
            self.spike.load_state_dict(spike)
        vars(self).update(counts)


def describe(loss: Tensor, norm: Tensor) -> str:
    terms = {"loss": loss.item(), "gradient norm": norm.item()}
    bad = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
    return ", ".join(bad) or "loss or gradient not finite on another rank"


def hold_average(trainer: pl.Trainer) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Ema):
            callback.hold()


def drop_gradients(optimizer: Optimizer, scaler: Any) -> None:
    """Make the optimizer's step do nothing at all: no decay of weights or moments, no count."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if scaler is None or not _optimizer_handles_unscaling(optimizer):
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.fill_(torch.nan)  # looked at later, by the scaler, which then skips
