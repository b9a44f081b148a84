"""Two ranks of a latent SpaText that died go on to the bits of two that did not."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import Callback
from torch.multiprocessing import ProcessExitedException

from comparing import differences
from runs import latent, load_last, run

NUM_STEPS, SAVED, DIED = 6, 3, 5  # an epoch has four
LIMIT = 120  # seconds
STATES = (
    "current_model_state",  # the weights
    "state_dict",  # their average
    "averaging_state",
    "optimizer_states",
    "lr_schedulers",
    "callbacks",  # the guard's counts
    "PanopticDataModule",  # the place in the data
    "loops",
)


class Die(Callback):
    """As in a power cut: nothing is cleaned up, on no rank."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == DIED:
            os._exit(9)


def train_one(rank: int, workspace: Path, run_dir: Path, port: int, *options: str) -> None:
    """In a process of its own: one of two ranks."""
    ranks = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run(
        latent(
            workspace,
            run_dir,
            *("trainer=ddp_sim", "datamodule.batch_size=2", "datamodule.val_shards=null"),
            *(f"trainer.max_steps={NUM_STEPS}", "resume=true", "callbacks.curves=null"),
            f"callbacks.checkpoint.every_n_train_steps={SAVED}",
            *("callbacks.throughput=null", "callbacks.ema.decay=0.5"),
            *options,
        )
    )


def train(workspace: Path, run_dir: Path, *options: str) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (workspace, run_dir, port, *options)
    context = mp.start_processes(train_one, arguments, nprocs=2, join=False, start_method="fork")
    assert context is not None
    deadline = time.monotonic() + LIMIT
    while not context.join(timeout=LIMIT):  # returns when one of them has ended, or none in time
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"ranks that do not end within {LIMIT} s")
    return load_last(run_dir)


@pytest.mark.slow
def test_a_crash_leaves_no_trace(workspace: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = train(workspace, whole)
    with pytest.raises(ProcessExitedException, match="exit code 9"):
        train(workspace, parts, "+callbacks.die._target_=test_resume_latent_ranks.Die")
    first = load_last(parts)
    found = train(workspace, parts)
    assert (first["global_step"], found["global_step"]) == (SAVED, NUM_STEPS)
    for part in STATES:
        if part == "callbacks":  # that of the checkpoints has the run's own number
            for state in (found, expected):
                state[part] = {k: v for k, v in state[part].items() if k.startswith("Finite")}
            assert found[part], part
        assert differences(found[part], expected[part]) == [], part
    for part in ("current_model_state", "state_dict", "optimizer_states", "PanopticDataModule"):
        assert differences(first[part], expected[part]), part  # something has happened since
    assert differences(found["state_dict"], found["current_model_state"])
    assert found["PanopticDataModule"]["global_batch_size"] == 4
