"""Two processes continue from the same checkpoint, or do not start."""

import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch import distributed

from launch_runs import Data, Module, Run, same_job, write_conf
from spatext.callbacks.checkpoint_files import WEIGHTS, read
from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from spatext.callbacks.checkpoints import Checkpoint, NotSaved, SameCheckpoint
from spatext.callbacks.ema import Ema
from tiny_runs import make_trainer


@pytest.mark.slow
def test_all_ranks_pass_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    """The newest of three was cut: started by torchrun, both ranks go on from the one before."""
    run_dir = tmp_path / "run"
    saver = Checkpoint(str(run_dir / "checkpoints"), every_n_train_steps=1, keep_last=3)
    trainer = make_trainer(
        tmp_path,
        max_steps=3,
        enable_checkpointing=True,
        callbacks=[saver, Ema()],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(Module(0.01), Data())
    weights = run_dir / "checkpoints" / "step-3.ckpt" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])

    run = Run(
        tmp_path / "cwd",
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "spatext.tools.train", "--config-dir", str(write_conf(tmp_path / "conf"))),
        *("experiment=weights", f"run_dir={run_dir}", f"hydra.run.dir={run_dir}", "resume=true"),
    )
    code, output = run.finish()
    assert code == 0, output
    assert [rank["step"] for rank in same_job(run_dir)] == [2, 2]
    for name in ("train.log", "train-rank-1.log"):
        log = (run_dir / name).read_text()
        assert f"passed over {weights.parent}: {WEIGHTS}: found" in log
        assert f"resuming from {weights.parents[1]}/step-2.ckpt" in log
    assert read(run_dir / "checkpoints" / "last.ckpt")["global_step"] == 4


class Secret(Callback):
    """Its state is no plain container, which is not found before it is written."""

    def state_dict(self) -> dict[str, Any]:
        return {"folder": Path()}


def fit_one(rank: int, folder: Path, port: int) -> None:
    """In a process of its own: one of two ranks that save after a step."""
    ranks = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trainer = make_trainer(
        folder,
        strategy=DDPStrategy(timeout=timedelta(seconds=60)),
        devices=2,
        max_steps=2,
        use_distributed_sampler=False,
        enable_checkpointing=True,
        callbacks=[Checkpoint(str(folder / "saved"), every_n_train_steps=1), Secret()],
    )
    try:
        trainer.fit(Module(0.01), Data())
        said = "fine"
    except (TypeError, NotSaved) as error:
        said = repr(error)
    (folder / f"said-{rank}").write_text(said)


@pytest.mark.slow
def test_an_error_of_the_writer_ends_all_ranks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(fit_one, (tmp_path, port), nprocs=2, start_method="fork")
    own, other = ((tmp_path / f"said-{rank}").read_text() for rank in (0, 1))
    assert own.startswith("TypeError('cannot write a checkpoint that cannot be read: ")
    assert other.startswith("NotSaved(")
    assert "checkpoint not saved: TypeError(" in other


class OfTwo(pl.Trainer):
    world_size = 2


def check(rank: int, folder: Path, paths: list[str | None]) -> None:
    """In a process of its own: what each of the two says."""
    group = {"init_method": f"file://{folder}/group", "rank": rank, "world_size": 2}
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60), **group)
    trainer = OfTwo(accelerator="cpu", logger=False, default_root_dir=folder)
    try:
        SameCheckpoint(paths[rank]).setup(trainer, pl.LightningModule(), "fit")
        said = "starts"
    except ValueError as error:
        said = str(error)
    (folder / f"said-{rank}").write_text(said)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("other", [None, "/run/step-6.ckpt", "/run/step-9.ckpt"])
def test_ranks_that_see_different_folders_do_not_start(tmp_path: Path, other: str | None) -> None:
    """One machine lags behind with its view of a shared folder, or has another disk there."""
    paths = ["/run/step-9.ckpt", other]
    mp.start_processes(check, (tmp_path, paths), nprocs=2, start_method="fork")
    expected = "starts"
    if other != paths[0]:
        expected = (
            f"resume: process 1 found {other}, process 0 /run/step-9.ckpt, expected the same run "
            "folder, with the same contents, on every machine"
        )
    assert [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)] == [expected] * 2
