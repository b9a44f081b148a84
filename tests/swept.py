"""A module whose result is known from its hyper-parameters, and what a sweep of it is told."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from launch_runs import Run
from tiny_runs import TinyModule

# A configuration folder; all that costs time and is tested elsewhere is off.
FILES = {
    "datamodule/tiny": "_target_: tiny_runs.TinyData\n",
    "module/swept": "_target_: swept.SweptModule\nlr: 0.1\nkind: a\nfate: well\n",
    "callbacks/nothing": "checkpoint: null\n",
    "logger/nothing": "csv: null\n",
    "experiment/swept": (
        "# @package _global_\n"
        "defaults:\n"
        "  - override /datamodule: tiny\n"
        "  - override /module: swept\n"
        "  - override /callbacks: nothing\n"
        "  - override /logger: nothing\n"
        "  - override /trainer: ddp_sim\n"
        "num_threads: 1\n"
        "optimized_metric: score\n"
        "trainer: {max_steps: 2, enable_checkpointing: false, enable_progress_bar: false}\n"
    ),
}


def write_conf(folder: Path) -> Path:
    for name, text in FILES.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class SweptModule(TinyModule):
    """Logs score = (lr - 0.3)^2 on all ranks. `fate`: how the run is to end."""

    def __init__(self, lr: float = 0.1, kind: str = "a", fate: str = "well") -> None:
        super().__init__()
        self.parameters_given = {"lr": lr, "kind": kind}
        self.lr, self.fate = lr, fate

    def on_train_start(self) -> None:
        facts = self.parameters_given | {"pid": os.getpid(), "sweep": os.environ["SPATEXT_SWEEP"]}
        folder = Path(self.trainer.default_root_dir)
        (folder / f"parameters-{self.global_rank}.json").write_text(json.dumps(facts))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.fate == "raise" and self.global_rank == self.trainer.world_size - 1:
            raise RuntimeError("out of luck")
        if self.fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.log("score", (self.lr - 0.3) ** 2)
        return super().training_step(batch, batch_idx)


def sweep(folder: Path, *overrides: str, code: int = 0, with_ranks: Sequence[str] = ()) -> str:
    """The output of a sweep in `folder`, which has to end with `code` and leave no process."""
    command = [*(with_ranks or [sys.executable]), "-m", "spatext.tools.train", "--multirun"]
    conf = write_conf(folder.parent / "conf")
    options = ("experiment=swept", *overrides, f"hydra.sweep.dir={folder}")
    run = Run(folder.parent, *command, "--config-dir", str(conf), *options)
    found, output = run.finish(240)
    assert found == code, output
    assert run.processes() == []
    return output


def parameters(trial: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trial / f"parameters-{rank}.json").read_text())
    return found
