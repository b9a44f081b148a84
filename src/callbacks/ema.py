"""Exponential moving average of the trainable weights."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

Pairs = list[tuple[Tensor, Tensor]]


class Average:
    """lerp towards the current weights by 1 - decay, where decay warms up with the step.

    decay(step) = min(decay, (1 + step) / (10 + step)), so that a short run is not dominated by
    its random start (the rule of TensorFlow's ExponentialMovingAverage). One pass over all weights
    at once: 12 bytes of traffic for each one in float32. A class, not a closure, so that it can be
    pickled to spawned processes.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.step = 0

    def __call__(self, averages: list[Tensor], current: list[Tensor], _: Tensor | int = 0) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averages, current, 1 - decay)


class Ema(WeightAveraging):
    """Averages the parameters after every optimizer step; validation and export see the average.

    It lies on the device that trains, and a step does not wait for it. Frozen networks are held
    outside `parameters()`, so only what is trained is copied; it knows nothing of weights that are
    spread over processes, and refuses them. In a checkpoint "state_dict" is the average and
    "current_model_state" the weights that training continues from: Lightning's own layout, also
    where it is written during a validation, in which the two have changed places. A step that
    `hold` was called in leaves the average as it is.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay: found {decay}, expected 0 <= decay < 1")
        self.average = Average(decay)
        self.last_weights: dict[str, Tensor] | None = None
        self.held = self.swapped = False
        self.is_first = True
        self.weights: Pairs = []
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
        if not self.weights:
            self.weights = pairs(model.module.parameters(), module.parameters())
            self.buffers = pairs(model.module.buffers(), module.buffers())
            self.is_first = int(model.n_averaged) == 0
        averages, current = map(list, zip(*self.weights, strict=True))
        if self.is_first:
            torch._foreach_copy_(averages, current)
            self.is_first = False
        else:
            self.average(averages, current)
        for average, value in self.buffers:
            average.copy_(value)
        model.n_averaged += 1

    def hold(self) -> None:
        """The optimizer step under way changes no weights."""
        self.held = True

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
        self.held = self.swapped = False
        self.weights, self.buffers = [], []
        # The module is moved there only after this hook.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        assert self._average_model is not None
        self._average_model.n_averaged = torch.tensor(0)  # of the host: nobody waits for it


def pairs(averages: Iterable[Tensor], current: Iterable[Tensor]) -> Pairs:
    """Each tensor with its average; what is not trained may be shared (`PartlyTrained`)."""
    return [(a, c) for a, c in zip(averages, current, strict=True) if a is not c]
