"""Tiny runs of the real command that take time, and say where they are."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from launch_runs import Run
from spatext.callbacks.checkpoint_files import newest_valid, read
from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.loaders import TrainingLoader
from spatext.datamodules.worker_signals import outlive_signals
from tiny_runs import Samples, TinyData, TinyModule, collate

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def with_bad(
    samples: list[dict[str, Any]], hang_at: int | None = None, die_at: int | None = None
) -> dict[str, Any]:
    """Once a sample of that place in the stream is among them, sleeps for good or dies, once."""
    last = max(int(sample["index"]) for sample in samples)
    if hang_at is not None and last >= hang_at:
        time.sleep(3600)
    if die_at is not None and last >= die_at and not (died := Path("died")).exists():
        died.touch()
        time.sleep(3)  # so that its rank waits, and what was sent before is out
        os.kill(os.getpid(), signal.SIGKILL)
    return collate(samples) | {"bad": []}


class SharedData(TinyData):
    """Eight global batches of four an epoch; each rank has its part."""

    def __init__(
        self,
        num_val: int = 8,
        num_workers: int = 0,
        setup_seconds: float = 0.0,
        hang_at: int | None = None,
        die_at: int | None = None,
    ) -> None:
        super().__init__(num_val)
        self.num_workers, self.setup_seconds = num_workers, setup_seconds
        self.hang_at, self.die_at = hang_at, die_at

    def setup(self, stage: str) -> None:
        Path("setting-up").touch()
        time.sleep(self.setup_seconds)

    def train_dataloader(self) -> TrainingLoader:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        sampler = GlobalBatchSampler(32, 4, rank=rank, world_size=world_size)
        self.loader = TrainingLoader(
            Samples(32),
            batch_sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=outlive_signals,
            collate_fn=partial(with_bad, hang_at=self.hang_at, die_at=self.die_at),
        )
        if self.restored:
            self.loader.load_state_dict(self.restored)
        return self.loader


class NoNumbers(TinyModule):
    """Its losses are no numbers from the third step on."""

    def loss(self, batch: dict[str, Any], x: Tensor) -> Tensor:
        return super().loss(batch, x) * (torch.nan if self.global_step > 1 else 1.0)


class Slow(Callback):
    """Sleeps within each place of a run, and appends its name to `folder`/progress-RANK.

    A line is "PID PLACE STEP", STEP steps being over. The samples of each step are in seen-RANK.
    """

    def __init__(self, folder: str, seconds: float = 0.15) -> None:
        self.folder, self.seconds = Path(folder), seconds

    def at(self, place: str, trainer: pl.Trainer) -> None:
        with (self.folder / f"progress-{trainer.global_rank}").open("a") as file:
            file.write(f"{os.getpid()} {place} {trainer.global_step}\n")
        time.sleep(self.seconds)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.at("setup", trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.at("step", trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        with (self.folder / f"seen-{trainer.global_rank}").open("a") as file:
            file.write(json.dumps([trainer.global_step, batch["key"]]) + "\n")

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.at("validation", trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        self.at("save", trainer)


def command(run_dir: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """spatext-train of a tiny module; started again it goes on."""
    return [
        *(sys.executable, *launcher, "-m", "spatext.tools.train", "resume=true"),
        *(f"run_dir={run_dir}", f"hydra.run.dir={run_dir}", "num_threads=1"),
        *("~datamodule", "+datamodule._target_=fault_runs.SharedData"),
        *("~module", "+module._target_=tiny_runs.TinyModule"),
        *("callbacks.throughput=null", "callbacks.curves=null", "callbacks.progress=null"),
        *("callbacks.ema.decay=0.5", "callbacks.checkpoint.every_n_train_steps=5"),
        *("+callbacks.slow._target_=fault_runs.Slow", f"+callbacks.slow.folder={run_dir}"),
        *("+callbacks.slow.seconds=0.15", "trainer.max_steps=20", "trainer.log_every_n_steps=1"),
        *overrides,
    ]


def seen(run_dir: Path, rank: int) -> dict[int, list[str]]:
    """{step: its samples}. A step that was done again had the same ones, or AssertionError."""
    found: dict[int, list[str]] = {}
    for line in (run_dir / f"seen-{rank}").read_text().splitlines():
        step, keys = json.loads(line)
        assert found.setdefault(step, keys) == keys, (step, keys)
    return dict(sorted(found.items()))


def training_state(run_dir: Path) -> dict[str, Any]:
    """Of the newest checkpoint: all that decides how training goes on."""
    path = newest_valid(run_dir / "checkpoints")
    assert path is not None
    state = read(path)
    parts = (
        *("global_step", "state_dict", "current_model_state", "averaging_state"),
        *("optimizer_states", "lr_schedulers", "SharedData"),
    )
    return {part: state[part] for part in parts}


class Job(Run):
    """A run whose processes end with the block; those of torchrun are no process group."""

    def __init__(self, run_dir: Path, command: list[str], **env: str) -> None:
        self.run_dir, self.log = run_dir, run_dir / "output.txt"
        run_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as file:
            super().__init__(run_dir, *command, log=file, **env)
        self.num_seen: dict[int, int] = {}
        self.forget()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        self.process.wait()

    def forget(self) -> None:
        """`reach` looks at what comes from now on."""
        self.num_seen = {rank: len(self.progress(rank)) for rank in (0, 1)}

    def progress(self, rank: int) -> list[tuple[int, str, int]]:
        """(pid, place, step) of the ranks of this run folder, this job's and those before."""
        path = self.run_dir / f"progress-{rank}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), place, int(step)) for pid, place, step in map(str.split, lines)]

    def news(self, rank: int = 0) -> list[tuple[int, str, int]]:
        """Of this job."""
        return self.progress(rank)[self.num_seen[rank] :]

    def reach(self, place: str, step: int = 0, *, rank: int = 0, timeout: float = 120) -> int:
        """The pid of a rank, once it is in a place and `step` steps are over."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            for pid, found, at in self.news(rank):
                if (found, at >= step) == (place, True):
                    return pid
            time.sleep(0.02)
        raise AssertionError(f"{place} {step} not reached: {self.log.read_text()}")

    def wait(self, timeout: float = 120) -> int:
        return self.process.wait(timeout)

    def is_over(self, seconds: float = 10) -> bool:
        """Whether no process of it is left."""
        return not self.left(seconds)
