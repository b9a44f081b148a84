"""Go back to a checkpoint within a fit."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy


def can_roll_back(trainer: pl.Trainer) -> bool:
    """Whether each process holds all weights. Sharded ones are not brought back in place."""
    return isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy)


def roll_back(trainer: pl.Trainer, pl_module: pl.LightningModule, path: str) -> int:
    """Weights, moments of the optimizers and the average become those of the checkpoint at `path`.

    Its step is returned. The data, the count of steps and with it the learning-rate schedule go on:
    what lies between is not trained again. All ranks read the checkpoint.
    """
    checkpoint = trainer.strategy.load_checkpoint(path)
    trainer.strategy.load_model_state_dict(checkpoint)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_load_checkpoint(trainer, pl_module, checkpoint)
    states = [
        {"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]}
        for saved, optimizer in zip(checkpoint["optimizer_states"], trainer.optimizers, strict=True)
    ]
    trainer.strategy.load_optimizer_state_dict({"optimizer_states": states})
    return int(checkpoint["global_step"])
