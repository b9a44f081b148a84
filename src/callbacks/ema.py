"""Exponential moving average of the trainable weights."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.optim.sgd import sgd

from ..modules.optim import FUSED_DEVICES

Pairs = list[tuple[Tensor, Tensor]]


class Average:
    """Towards the current weights by 1 - decay, where decay warms up with the step.

    decay(step) = min(decay, (1 + step) / (10 + step)), so that a short run is not dominated by
    its random start (the rule of TensorFlow's ExponentialMovingAverage). One pass over all weights
    at once: 12 bytes of traffic for each one in float32. Where `bad`, a tensor on their device, is
    1, it does nothing at all. A class, not a closure, so that it can be pickled to spawned
    processes.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.step = 0
        self.bad: Tensor | None = None

    def __call__(self, averages: list[Tensor], current: list[Tensor], _: Tensor | int = 0) -> None:
        share = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
        if averages[0].device.type not in FUSED_DEVICES:
            assert self.bad is None
            torch._foreach_lerp_(averages, current, share)
            return
        # a - share (a - c): a step of SGD with the "gradient" -c and a weight decay of 1. Of what
        # makes one pass of it, optimizers alone can be told by a tensor to do nothing: a factor of
        # 0 would let NaN through.
        sgd(
            averages,
            current,
            [None] * len(averages),
            fused=True,
            found_inf=self.bad,
            weight_decay=1.0,
            momentum=0.0,
            lr=share,
            dampening=0.0,
            nesterov=False,
            maximize=True,
        )


class Ema(WeightAveraging):
    """Averages the parameters after every optimizer step; validation and export see the average.

    It lies on the device that trains, and a step does not wait for it. Frozen networks are held
    outside `parameters()`, so only what is trained is copied; it knows nothing of weights that are
    spread over processes, and refuses them. In a checkpoint "state_dict" is the average and
    "current_model_state" the weights that training continues from: Lightning's own layout, also
    where it is written during a validation, in which the two have changed places. A step that
    `hold` was called in leaves the average as it is. `has_begun`: an average has been taken in this
    fit.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay: found {decay}, expected 0 <= decay < 1")
        self.average = Average(decay)
        self.last_weights: dict[str, Tensor] | None = None
        self.held = self.swapped = self.has_begun = False
        self.weights: tuple[list[Tensor], list[Tensor]] = [], []  # averages, current
        self.buffers: Pairs = []
        super().__init__(use_buffers=False, multi_avg_fn=self.average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.held:
            self.held, self._latest_update_step = False, trainer.global_step
        elif trainer.global_step > self._latest_update_step:
            self._latest_update_step = trainer.global_step
            # A function of the step alone, so a resumed run needs no state and a GPU is not asked.
            self.average.step = trainer.global_step
            self.update(pl_module)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """What AveragedModel.update_parameters does, without its walk over the network and without
        asking the device for its count."""
        model = self._average_model
        assert model is not None
        is_first = False
        if not self.has_begun:
            self.weights = columns(pairs(model.module.parameters(), module.parameters()))
            self.buffers = pairs(model.module.buffers(), module.buffers())
            self.has_begun, is_first = True, int(model.n_averaged) == 0
        bad = self.average.bad
        if is_first:
            torch._foreach_copy_(*self.weights)
        else:
            self.average(*self.weights)
        for average, value in self.buffers:
            average.copy_(value if bad is None else torch.where(bad > 0, average, value))
        model.n_averaged += 1 if bad is None else bad == 0
        self.average.bad = None

    def hold(self, bad: Tensor | None = None) -> None:
        """The optimizer step under way changes no weights; or not where `bad`, on their device, is
        1, which takes an average that has begun."""
        assert bad is None or self.has_begun
        self.held, self.average.bad = bad is None, bad

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        super()._swap_models(pl_module)
        self.swapped = not self.swapped

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The average now replaces them, but ModelCheckpoint may write its last file after this.
        weights = pl_module.state_dict().items()
        self.last_weights = {name: value.to("cpu", copy=True) for name, value in weights}
        super().on_train_end(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.last_weights is None:  # resumed where nothing is left to train
            self.on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.swapped:
            average, current = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint.update(state_dict=average, current_model_state=current)
        if self.last_weights is not None:
            checkpoint["current_model_state"] = self.last_weights

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise ValueError(
                "callbacks.ema: found sharded weights, expected trainer=ddp or one process; "
                "callbacks.ema=null trains without an average"
            )
        self.last_weights = None
        self.held = self.swapped = self.has_begun = False
        self.average.bad = None
        # The module is moved there only after this hook.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)


def pairs(averages: Iterable[Tensor], current: Iterable[Tensor]) -> Pairs:
    """Each tensor with its average; what is not trained may be shared (`PartlyTrained`)."""
    return [(a, c) for a, c in zip(averages, current, strict=True) if a is not c]


def columns(pairs: Pairs) -> tuple[list[Tensor], list[Tensor]]:
    # A fused kernel goes by places in memory.
    assert all(average.stride() == current.stride() for average, current in pairs)
    return [average for average, _ in pairs], [current for _, current in pairs]
