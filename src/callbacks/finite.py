"""Keep numbers that are not finite away from the weights."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ..modules.optim import FUSED_DEVICES
from ..modules.training import TrainedModule, gradients_of, parameters_of
from .ema import Ema
from .rollback import can_roll_back, roll_back
from .saving import newest_checkpoint
from .spikes import SpikeDetector
from .stops import GaveUp
from .throughput import is_logged_step
from .verdict import Verdict, drop_gradients, skips_by_itself, tell

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
    a step. With `skip` the device leaves the step out by itself, and the host, which does not wait
    for it, hears of it ahead of the next step, or where a checkpoint or a log wants to know. The
    host does wait, and decides ahead of the step, with `stop`; where a return may hang on the step
    (after a bad one, until a good one); before the optimizer and the average have begun; and where
    the optimizer cannot be told by a tensor: fused AdamW can, but not under a GradScaler nor with
    sharded weights. Both ways leave the same bits.

    Under a GradScaler an overflow of the gradients alone is the scaler's to handle: it leaves the
    step out and lowers its scale; it is counted, and does not use up the budget.
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
        self.pending: Verdict | None = None  # decided on the device, not yet known here
        self.reports = True
        self.reason = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.loss = self.pending = None
        self.reports = trainer.is_global_zero

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        loss = loss.detach().float()
        self.loss = loss if self.loss is None else self.loss + loss

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self.settle()
        loss, norm = self.measure(optimizer)
        bound = math.inf if self.spike is None else self.spike.bound()
        verdict = Verdict(trainer.global_step, loss, norm, bound, trainer.world_size)
        late = self.may_be_late(trainer, optimizer, loss.device)
        tell(optimizer, verdict.bad if late else None)
        if late:
            self.pending = verdict
            for average in averages(trainer):
                average.hold(verdict.bad)
        elif not self.decide(trainer, optimizer, verdict):
            return
        if isinstance(pl_module, TrainedModule):
            pl_module.gradient_norm = norm  # clipping need not find it again

    def decide(self, trainer: pl.Trainer, optimizer: Optimizer, verdict: Verdict) -> bool:
        """Whether the step is to be taken; where not, nothing is left for the optimizer to do."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        found = verdict.findings()
        if scaler is not None and found.bad_norm and not found.bad_loss:
            self.num_skipped += 1
        elif reason := self.judge(verdict):
            if self.on_bad == "stop":
                raise GaveUp(
                    f"step {verdict.step}: {reason}; stopped before the optimizer step, so the "
                    "weights are those of the step before"
                )
            drop_gradients(optimizer, scaler)
            self.leave_out(verdict.step, reason)
        else:
            return True
        for average in averages(trainer):
            average.hold()
        return False

    def may_be_late(self, trainer: pl.Trainer, optimizer: Optimizer, device: torch.device) -> bool:
        """Whether this step can be left out without the host, and no return hangs on it."""
        return (
            self.on_bad == "skip"
            and self.num_bad == 0
            and self.max_consecutive > 1
            and device.type in FUSED_DEVICES
            and skips_by_itself(optimizer)
            and getattr(trainer.precision_plugin, "scaler", None) is None
            and can_roll_back(trainer)
            and all(average.has_begun for average in averages(trainer))
            # A bad first step must not make moments of zeros.
            and all(p in optimizer.state for p in parameters_of(optimizer) if p.grad is not None)
        )

    def measure(self, optimizer: Optimizer) -> tuple[Tensor, Tensor]:
        """(loss, norm of the gradient) of this rank."""
        assert self.loss is not None
        loss, self.loss = self.loss, None
        return loss, get_total_norm(gradients_of(optimizer)).to(loss.device)

    def settle(self) -> None:
        """Count the step that the device has decided."""
        verdict, self.pending = self.pending, None
        if verdict is not None and (reason := self.judge(verdict)):
            self.leave_out(verdict.step, reason)

    def judge(self, verdict: Verdict) -> str:
        """What is wrong with a step; empty, and it is counted as good, where nothing is."""
        found = verdict.findings()
        if found.bad_loss or found.bad_norm:
            return verdict.describe()
        if found.spike:
            return f"loss = {found.loss:.4g}, a spike over {verdict.bound:.4g}"
        self.accept(found.loss)
        return ""

    def leave_out(self, step: int, reason: str) -> None:
        self.reason = reason
        self.num_skipped += 1
        self.num_bad, self.num_good = self.num_bad + 1, 0
        if self.reports:
            log.warning("step %d: %s; left out, %d in a row", step, reason, self.num_bad)

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
        for optimizer in trainer.optimizers:
            tell(optimizer, None)  # of other steps nothing is known
        if is_logged_step(trainer) or 0 < trainer.max_steps <= trainer.global_step:
            self.settle()
        if self.num_skipped != self.num_logged or is_logged_step(trainer):
            # A tensor on the CPU: Lightning would copy a number to the device, and wait for it.
            pl_module.log("train/skipped", torch.tensor(float(self.num_skipped)))
            self.num_logged = self.num_skipped
        if self.num_bad == self.max_consecutive:
            self.num_bad = 0
            self.go_back(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.settle()

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
        self.settle()
        counts = ("num_skipped", "num_bad", "num_good", "num_rollbacks")
        spike = {} if self.spike is None else {"spike": self.spike.state_dict()}
        return {name: getattr(self, name) for name in counts} | spike

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        counts = dict(state_dict)
        spike = counts.pop("spike", None)
        if self.spike is not None and spike is not None:
            self.spike.load_state_dict(spike)
        vars(self).update(counts)


def averages(trainer: pl.Trainer) -> Iterator[Ema]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Ema):
            yield callback
