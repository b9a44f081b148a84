"""How large gradients and updates are, layer by layer."""

import csv
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from ..datamodules.documents import atomic_path
from .tracking import Tracker

log = logging.getLogger(__name__)

NAMES = ("gradient", "update")


class NormHistograms(Callback):
    """Every `every_n_steps` optimizer steps, for each layer the norm of its gradient (before
    clipping) and of its update, ||w_(t+1) - w_t|| / ||w_t||.

    A layer is a module with parameters of its own, with `by: group` a parameter group of the
    optimizer. W&B and TensorBoard get histograms over the layers of the logarithms to base 10,
    `folder`/norms.csv a row per step and layer, and norms.png draws it at the end of the fit.

    At such a step, rank 0 keeps a copy of the trained weights and waits once for the device; at
    the others nothing is done. Not for sharded weights, of which no process has the norms.
    """

    def __init__(self, folder: str, *, every_n_steps: int = 100, by: str = "layer") -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"callbacks.histograms.every_n_steps: found {every_n_steps}, expected at least 1"
            )
        if by not in ("layer", "group"):
            raise ValueError(f"callbacks.histograms.by: found {by!r}, expected layer or group")
        self.path, self.every_n_steps, self.by = Path(folder, "norms.csv"), every_n_steps, by
        self.before: dict[str, list[Tensor]] = {}
        self.gradients: list[Tensor] = []
        self.layers: dict[str, list[Tensor]] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise ValueError(
                "callbacks.histograms: found sharded weights, expected trainer=ddp or one process"
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        due = (trainer.global_step + 1) % self.every_n_steps == 0
        if not due or not trainer.is_global_zero:
            return
        self.layers = (layers if self.by == "layer" else groups)(pl_module, optimizer)
        self.gradients = [
            norm([w.new_zeros(()) if w.grad is None else w.grad for w in weights])
            for weights in self.layers.values()
        ]
        self.before = {name: [w.detach().clone() for w in ws] for name, ws in self.layers.items()}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self.before or trainer.global_step % self.every_n_steps:
            return
        columns = [self.gradients, *updates(self.before, self.layers)]
        table = torch.stack([torch.stack(column) for column in columns]).T.tolist()
        names, self.before, self.gradients = list(self.layers), {}, []
        self.layers = {}
        try:
            append(self.path, trainer.global_step, names, table)
        except OSError as error:  # a table is no reason for a run to fail
            log.warning("no norms of step %d: %s", trainer.global_step, error)
        for logger in trainer.loggers:
            for number, name in enumerate(NAMES):
                values = logarithms([row[number] for row in table])
                log_histogram(logger, f"norms/{name}_log10", values, trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.path.is_file():
            try:
                draw_norms(self.path, self.path.with_suffix(".png"))
            except Exception as error:  # a picture is no reason for a run to fail
                log.warning("no norms.png: %s: %s", type(error).__name__, error)


def layers(module: pl.LightningModule, _: Optimizer) -> dict[str, list[Tensor]]:
    """The trained parameters of each module that has some of its own."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            found.setdefault(name.rpartition(".")[0], []).append(parameter)
    return found


def groups(_: pl.LightningModule, optimizer: Optimizer) -> dict[str, list[Tensor]]:
    """The parameter groups of the optimizer that are not empty, by name where they have one."""
    return {
        str(group.get("name", f"group {number}")): list(group["params"])
        for number, group in enumerate(optimizer.param_groups)
        if group["params"]
    }


def norm(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The 2-norm of all values together. Stays on the device."""
    return torch.stack(torch._foreach_norm([t.detach().float() for t in tensors])).norm()


def updates(
    before: Mapping[str, Sequence[Tensor]], after: Mapping[str, Sequence[Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each layer: relative update (NaN where the weights were zero), and norm before it."""
    sizes = [norm(weights) for weights in before.values()]
    changes = [
        norm([new.detach() - old for new, old in zip(after[name], weights, strict=True)])
        for name, weights in before.items()
    ]
    relative = [
        torch.where(size > 0, change / size, torch.nan)
        for change, size in zip(changes, sizes, strict=True)
    ]
    return relative, sizes


def logarithms(values: Sequence[float]) -> Float[np.ndarray, " n"]:
    """To base 10, of those that have one."""
    array = np.asarray(values, dtype=np.float64)
    return np.log10(array[np.isfinite(array) & (array > 0)])


def append(path: Path, step: int, names: Sequence[str], table: Sequence[Sequence[float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "layer", "gradient", "update", "weight"])
        writer.writerows([step, name, *row] for name, row in zip(names, table, strict=True))


def log_histogram(logger: Logger, name: str, values: Float[np.ndarray, " n"], step: int) -> None:
    if not len(values):
        return
    if isinstance(logger, Tracker):
        logger.send(partial(wandb_histogram, name=name, values=values), step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_histogram(name, values, step)


def wandb_histogram(wandb: Any, name: str, values: Float[np.ndarray, " n"]) -> dict[str, Any]:
    return {name: wandb.Histogram(np_histogram=np.histogram(values, bins=32))}


def draw_norms(table: Path, path: Path) -> None:
    """Layers down, steps across, log10 of the norms as colours."""
    from matplotlib.figure import Figure  # slow to import, and only rank 0 draws

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["layer"] for row in rows))
    steps = sorted({int(row["step"]) for row in rows})
    lines = {name: i for i, name in enumerate(names)}
    columns = {step: j for j, step in enumerate(steps)}
    height = min(40.0, max(3.0, 0.14 * len(names)))
    figure = Figure(figsize=(12, height), layout="constrained")
    for number, quantity in enumerate(NAMES, start=1):
        image = np.full((len(names), len(steps)), np.nan)
        for row in rows:  # a resumed run repeats steps: the last word is the one that holds
            value = float(row[quantity])
            if np.isfinite(value) and value > 0:
                image[lines[row["layer"]], columns[int(row["step"])]] = np.log10(value)
        panel = figure.add_subplot(1, 2, number)
        drawn = panel.imshow(image, aspect="auto", interpolation="none")
        panel.set_title(f"log10 {quantity} norm", fontsize=9)
        ticks = range(0, len(steps), -(-len(steps) // 8))
        panel.set_xticks(ticks, [str(steps[i]) for i in ticks])
        panel.set_yticks(range(len(names)), names if number == 1 else [""] * len(names))
        panel.tick_params(labelsize=6)
        figure.colorbar(drawn, ax=panel)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
