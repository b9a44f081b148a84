"""Make a checkpoint say where it came from, and all ranks be of one mind about it."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


class RecordConfig(Callback):
    """Stores the resolved configuration, as plain containers, in every checkpoint.

    So a checkpoint alone is enough to sample from, and it loads with `weights_only=True`. Before
    anything is trained, ranks that have composed another configuration than rank 0 are refused.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        here = dict(options(self.config))
        first = trainer.strategy.broadcast(here)
        other = [name for name in {**first, **here} if first.get(name) != here.get(name)]
        if trainer.strategy.reduce_boolean_decision(not other, all=True):
            return
        if not other:
            raise ValueError("another rank has composed another configuration; its log says where")
        name = other[0]
        raise ValueError(
            f"{name}={here.get(name)} on rank {trainer.global_rank}, {first.get(name)} on rank 0: "
            "expected the same on all ranks, so nothing of the time or of the process (of names, "
            "${run_stamp:} is the same)"
        )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["config"] = self.config


def options(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as text) of every leaf."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from options(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, repr(node)
