"""The real command on a model of twelve weights, with a callback that tells what each rank is."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from spatext.callbacks.record import RecordConfig
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.training import TrainedModule

MARKER = "SPATEXT_TEST_RUN"  # in the environment of every process of a run
# Not for a run: what makes a rank, and what tests choose for their own process.
NAMES = (
    *("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "PL_GLOBAL_SEED"),
    *("HYDRA_FULL_ERROR", "OMP_NUM_THREADS"),
)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        rows = torch.arange(24.0).reshape(6, 4)
        samples = [{"x": row, "index": torch.tensor(i)} for i, row in enumerate(rows)]
        return DataLoader(samples, batch_size=1)  # type: ignore[arg-type]


class Module(TrainedModule):
    def __init__(self, lr: float) -> None:
        super().__init__(
            lambda parameters: adamw(parameters, lr=lr),
            lambda optimizer: WarmupLR(optimizer, warmup_steps=2),
        )
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch["x"]).square().mean()
        self.log("train/loss", loss, sync_dist=True)
        return loss


class Probe(Callback):
    """Writes probe-RANK.json to the folder: of this attempt, unless it has one of its own already.

    At batch `at`, rank `fail_rank` raises (in the first attempt) and `hang_rank` does not go on.
    """

    def __init__(
        self, folder: str, fail_rank: int | None = None, hang_rank: int | None = None, at: int = 2
    ) -> None:
        self.folder, self.at = Path(folder), at
        self.fail_rank, self.hang_rank = fail_rank, hang_rank
        self.attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (record,) = (c for c in trainer.callbacks if isinstance(c, RecordConfig))  # type: ignore[attr-defined]
        facts = {
            "rank": trainer.global_rank,
            "attempt": self.attempt,
            "world_size": trainer.world_size,
            "step": trainer.global_step,
            "config": record.config,
            "num_threads": torch.get_num_threads(),
            "pid": os.getpid(),
            "parent": os.getppid(),
            "cwd": str(Path.cwd()),
            "argv": sys.argv[1:],
        }
        name = f"probe-{trainer.global_rank}" + (f"-{self.attempt}" if self.attempt else "")
        temporary = self.folder / f".{name}"
        temporary.write_text(json.dumps(facts))
        temporary.rename(self.folder / f"{name}.json")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self.at or self.attempt:
            return
        if trainer.global_rank == self.fail_rank:
            raise RuntimeError("out of luck")
        if trainer.global_rank == self.hang_rank:
            time.sleep(600)


def write_conf(folder: Path) -> Path:
    """Group files for `--config-dir`, as a user has them beside the package's."""
    files = {
        "datamodule/none": "_target_: launch_runs.Data\n",
        "module/weights": "_target_: launch_runs.Module\nlr: 0.01\n",
        "callbacks/probe": (
            "defaults: [default]\n"
            "checkpoint: {every_n_train_steps: 2}\n"
            "progress: {refresh_rate: 0}\n"
            "probe:\n"
            "  _target_: launch_runs.Probe\n"
            "  folder: ${run_dir}\n"
            "  fail_rank: null\n"
            "  hang_rank: null\n"
        ),
        "experiment/weights": (
            "# @package _global_\n"
            "defaults:\n"
            "  - override /datamodule: none\n"
            "  - override /module: weights\n"
            "  - override /callbacks: probe\n"
            "  - override /trainer: ddp_sim\n"
            "num_threads: 1\n"
            "trainer: {max_steps: 4}\n"
        ),
    }
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


class Run:
    """A command and what it starts: known by a mark in their environment."""

    def __init__(self, cwd: Path, *command: str, log: IO[str] | None = None, **env: str) -> None:
        """With `log` the output goes there, and the command has a process group of its own."""
        self.mark = f"{MARKER}={cwd}-{uuid.uuid4()}"
        kept = {k: v for k, v in os.environ.items() if k not in NAMES}
        name, value = self.mark.split("=", 1)
        paths = {"PYTHONPATH": str(Path(__file__).parent)}
        cwd.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=kept | paths | env | {name: value},
            stdout=log or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=log is not None,
        )

    def finish(self, seconds: float = 240) -> tuple[int, str]:
        """(exit code, output). Where it takes too long, nothing of it runs on."""
        try:
            output, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, output

    def kill(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left(self, seconds: float) -> list[int]:
        """The processes that are there still, or that long after."""
        deadline = time.monotonic() + seconds
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def processes(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # it has ended, or is not ours
        return found


def probes(folder: Path) -> list[dict[str, Any]]:
    """What the ranks told, in their order; of several attempts the last."""
    found = [json.loads(path.read_text()) for path in folder.glob("probe-*.json")]
    found.sort(key=lambda facts: (facts["attempt"], facts["rank"]))
    return list({facts["rank"]: facts for facts in found}.values())


def same_job(folder: Path, num_ranks: int = 2) -> list[dict[str, Any]]:
    """The probes of a run folder, after a look at what must hold for any."""
    ranks = probes(folder)
    assert [rank["rank"] for rank in ranks] == list(range(num_ranks))
    assert {rank["world_size"] for rank in ranks} == {num_ranks}
    assert len({rank["pid"] for rank in ranks}) == num_ranks
    for rank in ranks[1:]:
        assert rank["config"] == ranks[0]["config"]
    assert Path(ranks[0]["config"]["run_dir"]) == folder
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert "run folder" in (folder / "train.log").read_text()
    return ranks
