"""State that no test may inherit from the machine or from the test before it."""

import os

# Before any import of the libraries that read them, and for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would call its makers
os.environ["HYDRA_FULL_ERROR"] = "1"
os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS := 1)  # the tests run in a process per core

import logging
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed

torch.set_num_threads(NUM_THREADS)
# A shell ignores it for what it starts in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What makes a process a rank, which Lightning's environments set and leave there.
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (third parties draw from the global stream)
    torch.manual_seed(0)
    before = {name: os.environ.get(name) for name in RANK_VARIABLES}
    rank_zero_only.rank = 0
    # Hydra's configuration of a job turns off the loggers that it finds.
    logging.root.setLevel(logging.WARNING)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    torch.set_default_dtype(torch.float32)


# What takes seconds to import is imported by who asks for it.


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder as tests/tiny.py writes it; nothing may be changed in it."""
    from tiny import write_base

    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as tests/tiny_karlo.py writes it; nothing may be changed in it."""
    from tiny_karlo import write_karlo

    return write_karlo(tmp_path_factory.mktemp("karlo"))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of tests/runs.py; who writes in it takes a name of their own."""
    from runs import make_workspace

    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def checkpoint(workspace: Path) -> Path:
    """Of a run of two steps, after which the averaged weights are not the last ones."""
    from runs import latent, run

    options = ("trainer.max_steps=2", "datamodule.val_shards=null", "module.optimizer.lr=0.01")
    run(latent(workspace, workspace / "run", *options))
    return workspace / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def launch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With conf/, to run in."""
    from launch_runs import write_conf

    folder = tmp_path_factory.mktemp("launch")
    write_conf(folder / "conf")
    return folder
